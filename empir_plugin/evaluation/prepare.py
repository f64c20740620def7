"""Prepare a model for evaluation: a private copy, its device, exact float32 arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.identity import model_fingerprint as model_fingerprint
from empir_plugin.evaluation.model_description import INFRASTRUCTURE, describe_plain, describe_tensor
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.convert import ModelWrapper
from empir_plugin.models.integer.fold import fold_norms_, random_state_kept
from empir_plugin.models.layers import WRITES_TO_INPUT, bake_, frozen_copy


def parse_device(text: str) -> torch.device:
    """A device by name, if this machine has it.

    Raises:
        InputError: If the text names no device, or one this machine does not have.

    Example:
        >>> parse_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise InputError(f"a device is written 'cpu', 'cuda' or 'cuda:1', got {text!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no device {text} here ({torch.cuda.device_count()} CUDA devices): use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"evaluation runs on 'cpu' or 'cuda', got {text!r}")
    return device


def check_model(model: object) -> None:
    """Check that a model is a module, and not its name.

    Raises:
        InputError: If it is anything else.

    Example:
        >>> check_model("toy")
        Traceback (most recent call last):
        empir_plugin.errors.InputError: a model must be a torch.nn.Module, got 'toy': pass load_model('toy')
    """
    if isinstance(model, str):
        raise InputError(f"a model must be a torch.nn.Module, got {model!r}: pass load_model({model!r})")
    if not isinstance(model, nn.Module):
        raise InputError(f"a model must be a torch.nn.Module, got {type(model).__name__}: wrap it in one")


def require_weights(model: nn.Module, name: str) -> None:
    """Refuse a model whose weights were not loaded.

    Raises:
        EvaluationError: If its ``weights_loaded`` is false.
    """
    if not getattr(model, "weights_loaded", True):
        raise EvaluationError(f"{name} has no weights, and results with random weights mean nothing: pass a checkpoint")


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model for evaluation: weights quantized once, no parameter gradients, channels last.

    Batch normalization is folded into the quantized layer before it, which may change the last bits of the logits. The
    model itself is left unchanged.

    Raises:
        InputError: If it is not a module.
        EvaluationError: If it cannot be copied.

    Example:
        >>> prepare(nn.Conv2d(3, 8, 3), torch.device("cpu")).weight.requires_grad
        False
    """
    check_model(model)
    subject = frozen_copy(model)
    bake_(subject)
    fold_norms_(subject)
    return subject.to(device).to(memory_format=torch.channels_last)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of wrappers that only pass images on: data parallel, compiled, averaged, or a sequence of it.

    The sequence may hold ``nn.Identity`` besides. A wrapper with forward hooks is kept, as they may change the output.

    Example:
        >>> inner = nn.Flatten()
        >>> unwrap(nn.Sequential(nn.DataParallel(inner))) is inner
        True
    """
    while (inner := _inner(model)) is not None and not (model._forward_hooks or model._forward_pre_hooks):
        model = inner
    return model


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    if type(model) is AveragedModel:
        return model.module
    if "_orig_mod" in model._modules:  # torch.compile's OptimizedModule, without importing the compiler
        return model._modules["_orig_mod"]
    if type(model) is nn.Sequential:
        inside = [
            each for each in model if type(each) is not nn.Identity or each._forward_hooks or each._forward_pre_hooks
        ]
        return inside[0] if len(inside) == 1 else None
    return None


def ensembles_out_of_reach(model: nn.Module, images: Tensor) -> list[Ensemble]:
    """The ensembles at work in a model, other than the model itself: no attack sees their members.

    Args:
        model: From images to logits.
        images: ``(n, C, H, W)`` to run it on, which shows ensembles that are no submodules, as in a Python list.

    Example:
        >>> ensemble = Ensemble([nn.Flatten(), nn.Flatten()])
        >>> [len(ensembles_out_of_reach(each, torch.rand(1, 1, 2, 2))) for each in (ensemble, nn.Sequential(ensemble))]
        [0, 1]
    """
    while isinstance(model, ModelWrapper):
        model = model.model
    found = {module: None for module in model.modules() if isinstance(module, Ensemble)}

    def look(module: nn.Module, args: object) -> None:
        if isinstance(module, Ensemble):
            found[module] = None

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        _forward(model, images)
    finally:
        handle.remove()
    return [each for each in found if each is not model]


class PreparedModel(NamedTuple):
    """A copy of a model ready for evaluation, and the memory format its images must have."""

    model: nn.Module
    memory_format: torch.memory_format


def prepare_for_images(
    model: nn.Module, device: torch.device, images: Tensor, *, differentiable: bool = True
) -> PreparedModel:
    """Prepare a copy of a model, and try it on images before anything depends on it.

    The copy runs in channels-last memory if its results and gradients are the same there, else in contiguous memory:
    a ``view`` of activations, for instance, works only in the latter. Logits of other types are cast to float32.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        device: Where to compute.
        images: ``(n, C, H, W)`` in [0, 1], two or more if possible.
        differentiable: Whether gradients will be needed, too.

    Raises:
        InputError: If it is not a module.
        EvaluationError: If it cannot be copied, has parts in training mode that ``eval()`` does not reach, changes its
            own state or its input in a forward pass, remembers earlier images, or takes no float32 images.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv, self.linear = nn.Conv2d(3, 4, 5), nn.Linear(4 * 4 * 4, 10)
        ...
        ...     def forward(self, x):
        ...         x = self.conv(x)
        ...         return self.linear(x.view(x.size(0), -1))
        >>> prepare_for_images(Net(), torch.device("cpu"), torch.rand(2, 3, 8, 8)).memory_format
        torch.contiguous_format
    """
    subject, images = prepare(model, device).to(memory_format=torch.contiguous_format), images.to(device)
    with exact_float32(), random_state_kept(subject):
        check_forward(subject, images, differentiable=differentiable)
        logits = _forward(subject, images)
        if logits is None:
            _refuse_other_type(subject, images)
        memory_format = torch.contiguous_format
        if logits is not None and _runs_alike(subject, images, logits, differentiable):
            memory_format = torch.channels_last
    subject = subject.to(memory_format=memory_format)
    if logits is not None and logits.is_floating_point() and logits.dtype != torch.float32:
        subject = Float32Logits(subject).eval()
    return PreparedModel(subject, memory_format)


class Float32Logits(ModelWrapper):
    """A model whose logits are cast to float32; attributes such as ``members`` are those of the model.

    Args:
        model: Returns logits ``(N, K)`` of another type of real numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` in float32 of images ``(N, C, H, W)``."""
        return self.model(x).float()

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits ``(M, N, K)`` of an ensemble's members in float32."""
        member_logits: Any = self.model.member_logits
        return member_logits(x).float()


def check_forward(model: nn.Module, images: Tensor, *, differentiable: bool = True) -> None:
    """Check that a forward pass does nothing that would make an evaluation wrong.

    Args:
        model: In evaluation mode.
        images: ``(n, C, H, W)`` in [0, 1].
        differentiable: Whether to try a pass with gradients, too.

    Raises:
        EvaluationError: If a layer in training mode is at work that ``eval()`` does not reach, or the pass changes the
            images, the model's own state, its mode, or what its next results are.
    """
    before, modes, remembered, given = state_of(model), _modes(model), _attributes(model), images.clone()
    hidden: dict[nn.Module, dict[str, str]] = {}
    with _hidden_modules(model, hidden):
        logits = _forward(model, images)
        again = _forward(model, images, gradient=differentiable)
    if not torch.equal(images, given):
        raise EvaluationError(WRITES_TO_INPUT)
    if switched := [name or "the whole model" for name, mode in _modes(model).items() if mode != modes.get(name, mode)]:
        raise EvaluationError(
            f"the model leaves evaluation mode in its own forward pass ({', '.join(switched[:3])}): its results would "
            "depend on the batch or on chance; remove the call of train() in forward"
        )
    _check_modes(model, images, list(hidden), logits)
    changed = changes(before, state_of(model))
    for module, state in hidden.items():
        changed += [f"{type(module).__name__}.{name}" for name in changes(state, state_of(module, recurse=False))]
    if changed:
        raise EvaluationError(
            f"the model changes its own state in a forward pass in evaluation mode ({', '.join(changed[:3])}): its "
            "results would depend on what it was shown before; update such state in training mode only, or, if the "
            "first pass creates it, call the model once beforehand"
        )
    changed = [name for name, value in _attributes(model).items() if value != remembered.get(name)]
    # Most models that keep something never read it again: features for a plot, the number of their passes.
    if changed and logits is not None and again is not None and not _are_close(again.detach(), logits, _REPEATED):
        raise EvaluationError(
            f"the model gives other results for the same images in its next forward pass, and keeps something of each "
            f"({', '.join(changed[:3])}): its results would depend on what it was shown before; update such state in "
            "training mode only"
        )


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names of the tensors that were changed, added or removed between two descriptions of a state.

    Example:
        >>> changes({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
        ['b', 'c']
    """
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


_MODE_DEPENDENT = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.dropout._DropoutNd
)  # fmt: skip
_UNREACHABLE = (
    "{} is in training mode and not a submodule of the model, so eval() does not reach it and its results depend on "
    "the batch or on chance: hold it as an attribute or in an nn.ModuleList, not in a Python list or a closure"
)


@contextmanager
def _hidden_modules(model: nn.Module, hidden: dict[nn.Module, dict[str, str]]) -> Iterator[None]:
    """Collect the modules that run and are not part of the model, with their state before they run.

    Those that depend on training mode are refused at once.
    """
    known = set(model.modules())

    def look(module: nn.Module, args: object) -> None:
        if module in known or module in hidden:
            return
        if module.training and isinstance(module, _MODE_DEPENDENT):
            raise EvaluationError(_UNREACHABLE.format(f"a {type(module).__name__}"))
        hidden[module] = state_of(module, recurse=False)

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _check_modes(model: nn.Module, images: Tensor, hidden: list[nn.Module], logits: Tensor | None) -> None:
    """Compare with the hidden modules in evaluation mode."""
    training = [module for module in hidden if module.training]
    if not training or logits is None:
        return
    for module in training:
        module.training = False
    try:
        in_evaluation_mode = _forward(model, images)
    finally:
        for module in training:
            module.training = True
    if in_evaluation_mode is None or not torch.equal(logits, in_evaluation_mode):
        names = sorted({f"a {type(module).__name__}" for module in training})
        raise EvaluationError(_UNREACHABLE.format(", ".join(names)))


def state_of(model: nn.Module, *, recurse: bool = True) -> dict[str, str]:
    """A hash of each parameter and buffer of a model, by name; without those of its parts unless ``recurse``.

    Example:
        >>> list(state_of(nn.Linear(2, 2)))
        ['weight', 'bias']
    """
    tensors = {**dict(model.named_parameters(recurse=recurse)), **dict(model.named_buffers(recurse=recurse))}
    return {name: describe_tensor(tensor) for name, tensor in tensors.items()}


def _attributes(model: nn.Module) -> dict[str, str]:
    """What modules keep in plain attributes, neither parameters nor buffers."""
    known = frozenset(map(id, model.modules()))
    return {
        f"{name}.{key}".lstrip("."): text
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in INFRASTRUCTURE and (text := describe_plain(value, known)) is not None
    }


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def _forward(model: nn.Module, images: Tensor, *, gradient: bool = False) -> Tensor | None:
    """The logits; None if the model fails, which the evaluation of the clean images reports with its context."""
    x = images.clone().requires_grad_(True) if gradient else images
    with torch.set_grad_enabled(gradient), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        try:
            logits = model(x)
        except EvaluationError:
            raise
        except Exception:
            return None
    return logits if isinstance(logits, Tensor) else None


def _refuse_other_type(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that fails on float32 images and not on images of the type of its parameters."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} - {images.dtype}
    for kind in types:
        if _forward(model, images.to(kind)) is not None:
            name = str(kind).removeprefix("torch.")
            raise EvaluationError(
                f"the model takes images of {name} only, and images are float32: cast them in its forward "
                f"(x = x.to({kind})), or call model.float()"
            )


def _runs_alike(model: nn.Module, images: Tensor, expected: Tensor, differentiable: bool) -> bool:
    """Whether a model gives the same logits in channels-last memory, and its backward pass works there."""
    found = _forward(model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last))
    if not _are_close(found, expected, _TOLERANCE):
        return False
    if not differentiable:
        return True
    with torch.enable_grad():
        x = images.detach().clone(memory_format=torch.channels_last).requires_grad_(True)
        try:
            total = model(x).float().sum()
            if total.requires_grad:
                torch.autograd.grad(total, x, allow_unused=True)
        except Exception:  # Code of others may check its memory in any way; the same pass is run again without it.
            return False
    return True


def _are_close(found: Tensor | None, expected: Tensor, tolerance: float) -> bool:
    """Whether two passes gave the same logits, up to a share of the largest."""
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype or expected.is_complex():
        return False
    scale = float(expected.abs().amax()) if expected.numel() else 0.0
    return math.isfinite(scale) and torch.allclose(found.double(), expected.double(), rtol=0.0, atol=tolerance * scale)


_TOLERANCE = 1e-2
"""Difference of logits between memory formats, as a share of the largest, that rounding explains."""
_REPEATED = 1e-4
"""The same between two passes on the same images in the same memory."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32 inside the block: its rounding moves activations to other levels of a quantized network."""
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    found = [(switch, switch.fp32_precision) for switch in _precision_switches()]
    try:
        allowed = [place.allow_tf32 for place in places]
    except RuntimeError:  # They cannot be read once the user's code has set the newer switches to something else.
        allowed = None
    try:
        for place in places if allowed is not None else ():
            place.allow_tf32 = False
        for switch, _ in found:
            if allowed is None or switch.fp32_precision == "tf32":  # as what is set for all backends may demand
                switch.fp32_precision = "ieee"
        yield
    finally:
        for place, value in zip(places, allowed or (), strict=False):
            place.allow_tf32 = value
        for switch, precision in found:
            switch.fp32_precision = "none"  # what is set for all backends
            if switch.fp32_precision != precision:
                switch.fp32_precision = precision


def _precision_switches() -> list[Any]:
    """The switches of single operators that PyTorch has since 2.9; setting the older ones sets these, too."""
    cudnn: Any = torch.backends.cudnn
    operators = torch.backends.cuda.matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)
    return [operator for operator in operators if hasattr(operator, "fp32_precision")]
