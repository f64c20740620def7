"""The registry of named models: discovery by entry point, registration with timm, and ``load_model``.

RobustBench's own ``load_model`` looks models up in timm's registry.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from inspect import signature
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from torch import nn

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin._entry_points import discover, find, hint
from empir_plugin._files.names import check_name
from empir_plugin.errors import InputError, WeightsError, cause
from empir_plugin.models.activations import Activations
from empir_plugin.models.convert.probe import preserve_modes
from empir_plugin.models.convert.select import INNER, Layers
from empir_plugin.models.ensemble import shift_above_zero_
from empir_plugin.models.quantize import Precision, Scale
from empir_plugin.models.weight_files import load_checkpoint
from empir_plugin.zoo.builders import ModelBuilder
from empir_plugin.zoo.checkpoints import read_tensors_only, refuse_other_sources, without_pickles
from empir_plugin.zoo.quantized.architectures import Architecture
from empir_plugin.zoo.quantized.build import Channels, QuantizedCard, curated_networks
from empir_plugin.zoo.spec import ModelOptions, find_unnamed

with silence_harmless_warnings():
    import timm.models

GROUP = "robustbench.models"
"""Entry-point group: the name is the model id, the value a :class:`~empir_plugin.zoo.builders.ModelBuilder`."""

_TIMM_MODULE = "empir_plugin.zoo._timm_entrypoints"


@cache
def builders() -> Mapping[str, ModelBuilder]:
    """Every discovered model by its id, of this package and of others.

    A broken entry point, or a second one of the same name, is skipped with a warning that names its distribution.

    Example:
        >>> builders()["empir-cifar"].dataset
        'cifar10'
    """
    return discover(entry_points(group=GROUP), "model", _accept, "empir_plugin.ModelBuilder")


def _accept(loaded: Any) -> ModelBuilder | None:
    return loaded if isinstance(loaded, ModelBuilder) else None


def timm_name(model: str, dataset: str, threat: str) -> str:
    """The name under which RobustBench asks timm for a model.

    Example:
        >>> timm_name("empir-cifar", "cifar10", "Linf")
        'empir_cifar_cifar10_linf'
    """
    return f"{model.lower().replace('-', '_')}_{dataset.lower()}_{threat.lower()}"


def register() -> None:
    """Register every discovered model and every predefined quantized network with timm."""
    for name, builder in builders().items():
        register_family(name, (builder,))
    for name, family in curated_networks().items():
        register_family(name, family)


def register_family(name: str, family: Sequence[ModelBuilder]) -> None:
    """Register a name with timm, once for each data set and threat model it is meant for.

    Args:
        name: Model id.
        family: The model's builders, one for each data set.

    Raises:
        InputError: If the id is no plain name: see :func:`~empir_plugin._files.names.check_name`.

    Example:
        >>> register_family("my-network", (ModelBuilder(lambda num_classes: nn.Flatten(), dataset="cifar10"),))
        >>> load_model("my-network")
        Flatten(start_dim=1, end_dim=-1)
    """
    check_name("a model", name)
    module = _timm_module()
    for builder in family:
        for threat in builder.threats:
            _register_one(module, name, builder, threat)


def _register_one(module: ModuleType, name: str, builder: ModelBuilder, threat: str) -> None:
    key = timm_name(name, builder.dataset, threat)
    if timm.models.is_model(key):
        return
    function = _entrypoint(name, builder)
    function.__name__ = function.__qualname__ = key
    function.__module__ = module.__name__
    vars(function)["builder"] = builder
    setattr(module, key, function)
    timm.models.register_model(function)


def _timm_module() -> ModuleType:
    # timm looks a function's module up in sys.modules and appends to its __all__, so ours get a module of their own.
    if _TIMM_MODULE not in sys.modules:
        module = ModuleType(_TIMM_MODULE, "timm entry points, generated from the discovered model builders.")
        module.__dict__["__all__"] = []
        sys.modules[_TIMM_MODULE] = module
    return sys.modules[_TIMM_MODULE]


def _entrypoint(name: str, builder: ModelBuilder) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, *, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
        # RobustBench always passes `pretrained`; further keywords depend on timm's release.
        refuse_other_sources(name, kwargs)
        model = _build(name, builder, builder.num_classes if num_classes is None else num_classes)
        _check_takes_attributes(name, model)
        read_tensors_only(model)
        return model

    return create


def _build(name: str, builder: ModelBuilder, num_classes: int) -> nn.Module:
    _check_takes_classes(name, builder)
    model: object = builder(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"the builder of {name} must return a torch.nn.Module, got a {type(model).__name__}: wrap it")
    try:
        with preserve_modes(model):
            model.eval()
    except NotImplementedError as error:  # An exported program has no modes, and RobustBench sets one.
        raise InputError(
            f"the builder of {name} returns a {type(model).__name__} that has no evaluation mode ({error}): return the "
            "network it was made from"
        ) from error
    return model


def _check_takes_classes(name: str, builder: ModelBuilder) -> None:
    try:
        parameters = signature(builder.build).parameters.values()
    except (TypeError, ValueError):  # Compiled code may have no signature.
        return
    if not any(each.name == "num_classes" or each.kind is each.VAR_KEYWORD for each in parameters):
        raise InputError(
            f"the builder of {name} is called with num_classes, which it does not take: add that keyword to "
            f"{getattr(builder.build, '__qualname__', builder.build)}"
        )


def _check_takes_attributes(name: str, model: Any) -> None:
    """Newer releases of timm note the arguments of a model on the model."""
    try:
        model._model_args = dict(getattr(model, "_model_args", {}))
    except Exception as error:  # A class of its own may refuse attributes in any way.
        raise InputError(
            f"the builder of {name} returns a {type(model).__name__} that takes no attribute ({error}), and timm sets "
            "some: wrap it in a torch.nn.Module"
        ) from error
    del model._model_args


def _refuse_other_use(name: str, builder: ModelBuilder, dataset: str | None, threat: str) -> None:
    """Refuse a data set or a threat model that a model is not meant for."""
    if dataset not in (None, builder.dataset):
        raise InputError(f"{name} is a model for {builder.dataset}, got dataset={dataset!r}: leave it out")
    if threat not in builder.threats:
        known = " or ".join(repr(text) for text in builder.threats)
        raise InputError(f"{name} is registered for {known}, got threat_model={threat!r}: pass one of these")


def register_quantized(
    name: str,
    architecture: Architecture,
    precision: Precision | str,
    *,
    dataset: str = "cifar10",
    num_classes: int = 10,
    threats: tuple[str, ...] = ("Linf", "L2", "corruptions"),
    mean: Channels | None = None,
    std: Channels | None = None,
    scale: Scale = "max",
    activations: Activations | str = Activations.AUTO,
    layers: Layers | str = INNER,
    **settings: Any,
) -> ModelBuilder:
    """Give a quantized network a name, for ``load_model`` of this package and of RobustBench, in this process.

    The network is built when it is loaded. For a name in every process, declare the returned builder as an entry point
    of the group ``robustbench.models`` in a package of your own.

    Args:
        name: Model id, such as ``"dorefa-w3a3-resnet26"``.
        architecture: As for :func:`~empir_plugin.zoo.quantized.architectures.empir`.
        precision: Bits of the quantized layers.
        dataset: The data set it classifies.
        num_classes: K.
        threats: RobustBench's threat models it is meant for.
        mean: Mean of each channel of images in [0, 1], for their normalisation; none by default.
        std: Standard deviation of each channel.
        scale: See :func:`~empir_plugin.models.convert.quantize_.quantize_`, also for the next two.
        activations: Likewise.
        layers: Likewise.
        **settings: Keywords of the architecture.

    Raises:
        InputError: If the name is taken or not plain, or the precision is full.

    Example:
        >>> register_quantized("dorefa-w3a3-resnet26", "resnet26", "w3a3").dataset
        'cifar10'
    """
    if find_builder(name, dataset) is not None:
        raise InputError(f"there is a model {name!r} already: choose another name")
    bits = Precision.parse(precision) if isinstance(precision, str) else precision
    if bits.is_full:
        raise InputError(f"{name} would not be quantized at precision 'fp': pass one such as 'w4a4'")
    card = QuantizedCard(
        name=name,
        architecture=architecture,
        precision=bits,
        dataset=dataset,
        num_classes=num_classes,
        threats=threats,
        mean=mean,
        std=std,
        scale=scale,
        activations=activations,
        layers=layers,
        settings=MappingProxyType(settings),
    )
    builder = card.builder()
    register_family(name, (builder,))
    return builder


def mirror_into_robustbench() -> None:
    """Add the discovered models to RobustBench's ``model_dicts``, as it does with its own timm models.

    RobustBench must have been imported. Models for a data set or threat model without a table there are skipped.
    """
    from robustbench.model_zoo.models import model_dicts

    tables = {(data.value, threat.value): rows for data, by in model_dicts.items() for threat, rows in by.items()}
    for name, builder in builders().items():
        for threat in builder.threats:
            if (builder.dataset, threat) in tables:
                tables[builder.dataset, threat].setdefault(name, {"model": builder, "gdrive_id": None})


def load_model(
    model_name: str,
    model_dir: str | Path = "./models",
    dataset: str | None = None,
    threat_model: str = "Linf",
    custom_checkpoint: str | Path = "",
    *,
    ema: bool | None = None,
    logits: bool = False,
) -> nn.Module:
    """Load a model by name: RobustBench's ``load_model``, which also knows MNIST and each model's own data set.

    Args:
        model_name: A discovered id such as ``"empir-cifar"``, a quantized network such as ``"dorefa-w4a4-resnet18"``,
            or any name RobustBench knows; also ``package.module:callable``, an architecture (``"ResNet-18"``) with
            ``custom_checkpoint``, or a path of what ``empir train`` or ``empir quantize`` wrote.
        model_dir: Where RobustBench keeps the weights it downloads; unused by discovered models.
        dataset: The data set; the model's own by default, ``"cifar10"`` for a model of RobustBench.
        threat_model: ``"Linf"``, ``"L2"`` or another that RobustBench knows.
        custom_checkpoint: A weight file of the model in place of its own weights: a file of
            :func:`~empir_plugin.models.weight_files.load_weights`, safetensors or PyTorch's (``.pt``). Only tensors are
            read from it; its SHA-256 is logged, and kept in run records.
        ema: Whether to load the moving average of the weights in that file; needed only if it holds both.
        logits: Whether to shift the outputs above zero, for attacks of other libraries; see
            :func:`~empir_plugin.models.ensemble.shift_above_zero_`.

    Returns:
        The network in evaluation mode, from images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.

    Raises:
        InputError: If the model is not known, or not for this data set or threat model.
        WeightsError: If a weight file is damaged or made for another model.

    Example:
        >>> import torch
        >>> load_model("empir-mnist")(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    if ema is not None and not custom_checkpoint:
        raise InputError(f"ema={ema} chooses among the weights in a file: pass custom_checkpoint (--checkpoint), too")
    builder = find_builder(model_name, dataset)
    if builder is None:
        checkpoint = Path(custom_checkpoint) if custom_checkpoint else None
        unnamed = find_unnamed(model_name, ModelOptions(checkpoint, ema, dataset or ""))
        where = model_name, model_dir, dataset or "cifar10", threat_model
        model = unnamed.load() if unnamed else _load_from_robustbench(*where, custom_checkpoint, ema)
    else:
        _refuse_other_use(model_name, builder, dataset, threat_model)
        model = _build(model_name, builder, builder.num_classes)
        if custom_checkpoint:
            load_checkpoint(model, Path(custom_checkpoint), ema=ema)
    if logits:
        shift_above_zero_(model)
    return model.eval()


def find_builder(model_name: str, dataset: str | None = None) -> ModelBuilder | None:
    """The discovered or registered model of a name; as in RobustBench, case, ``-`` and ``_`` make no difference.

    Args:
        model_name: Its id.
        dataset: The data set, for a name with several; the first one by default, or if there is no such model.
    """
    return find(builders(), model_name) or _find_registered(model_name, dataset)


def _find_registered(name: str, dataset: str | None) -> ModelBuilder | None:
    registered = {key: each.builder for key, each in vars(_timm_module()).items() if hasattr(each, "builder")}
    found = [each for key, each in registered.items() if key == timm_name(name, each.dataset, each.threats[0])]
    return next((builder for builder in found if builder.dataset == dataset), found[0] if found else None)


def _load_from_robustbench(
    name: str, model_dir: str | Path, dataset: str, threat: str, checkpoint: str | Path, ema: bool | None
) -> Any:
    from robustbench.model_zoo.models import model_dicts
    from robustbench.utils import load_model as robustbench_load_model

    known = {model for threats in model_dicts.values() for models in threats.values() for model in models}
    if name not in known:
        advice = hint(name, [*builders(), *curated_networks(), *known], f"this package has {', '.join(builders())}")
        raise InputError(f"no model {name!r} here or in RobustBench: {advice}")
    tables = {(data.value, each.value): rows for data, by in model_dicts.items() for each, rows in by.items()}
    _check_in_robustbench(name, dataset, threat, tables)
    row = tables.get((dataset, threat), {}).get(name, {})
    with without_pickles():
        # For models with a gdrive_id, RobustBench ignores custom_checkpoint, and loads the weights that it downloads.
        is_timm_s = not checkpoint or row.get("gdrive_id") is None
        if is_timm_s:
            with _explain_download(name, Path(model_dir, dataset, threat.replace("_3d", ""), f"{name}.pt")):
                model: nn.Module = robustbench_load_model(name, model_dir, dataset, threat)
        else:
            model = row["model"]()
    if checkpoint:
        load_checkpoint(model, Path(checkpoint), ema=ema)
    return model.eval()


@contextmanager
def _explain_download(name: str, file: Path) -> Iterator[None]:
    """One sentence in place of whatever RobustBench's download raises, and reading what is not there then."""
    try:
        yield
    except Exception as error:
        if file.is_file():
            raise
        raise WeightsError(
            f"the weights of {name} are not in {file}, and RobustBench could not download them ({cause(error)}): put "
            "the file there, or pass it as --checkpoint"
        ) from error


def _check_in_robustbench(
    name: str, dataset: str, threat: str, tables: Mapping[tuple[str, str], Mapping[str, Any]]
) -> None:
    """Refuse a data set or threat model for which RobustBench has no model of that id."""
    has = [where for where, rows in tables.items() if name in rows]
    if (dataset, threat.replace("_3d", "")) not in has:
        known = " or ".join(f"{data}, {norm}" for data, norm in has)
        raise InputError(f"RobustBench has {name} for {known}, got {dataset}, {threat}: pass --dataset and --threat")
