"""Run a network on images to learn about it: signs of layer inputs, batch statistics and starts of learned ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from empir_plugin.errors import EmpirError, InputError, cause
from empir_plugin.models.activations import is_signed
from empir_plugin.models.layers import WRITES_TO_INPUT, input_of_call, is_special, quantized_layers
from empir_plugin.models.quantize import in_float32

_NOISE_IMAGES = 2
_BATCH = 256
_QUANTILE = 0.999
_SMALLEST_BOUND = 1e-3


def check_images(model: nn.Module, images: object) -> Tensor:
    """Check calibration images and move them to the network's device and type.

    Raises:
        InputError: If they are not finite float images ``(N, C, H, W)``, or fewer than two.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        actual = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise InputError(f"calibration must be a float tensor of images (N, C, H, W), got {actual}")
    if len(images) < 2:
        raise InputError(f"calibration needs two images at least, got {len(images)}: one has no statistics")
    if not bool(images.isfinite().all()):
        raise InputError("calibration has values that are not finite: images are in [0, 1]")
    return _like_parameters(images, model)


def _like_parameters(images: Tensor, model: nn.Module) -> Tensor:
    """The images on the device and in the type of a network's first parameter of floating-point numbers."""
    parameter = next((each for each in model.parameters() if each.is_floating_point()), images)
    return images.to(parameter.device, parameter.dtype)


def noise(model: nn.Module) -> Tensor | None:
    """Fixed images ``(N, C, H, W)`` of uniform noise, of the size in ``default_cfg``; None without one."""
    config: Any = getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size is None:
        return None
    return _like_parameters(torch.rand(_NOISE_IMAGES, *size, generator=torch.Generator().manual_seed(0)), model)


@dataclass
class _SignTally:
    """Counts of one layer's input values."""

    negative: int = 0
    total: int = 0


def negative_shares(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    """Share of negative values in the input of each layer, 0 to 1; layers that are never called are omitted.

    Raises:
        InputError: If the network does not accept the images.
    """
    tallies: dict[str, _SignTally] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            values, tally = input_of_call(args, kwargs), tallies.setdefault(name, _SignTally())
            tally.negative += int((values < 0).sum())
            tally.total += values.numel()

        return layer.register_forward_pre_hook(note, with_kwargs=True)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        with preserve_modes(model), torch.no_grad():
            model.eval()
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tally.negative / max(tally.total, 1) for name, tally in tallies.items()}


def end_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The layers that see the images, and those that give the logits, with none of the layers between.

    A layer sees the images if its input changes with them while every layer gives the same outputs as before. A layer
    gives the logits if they have a gradient by its output, where each layer's output counts as independent of its
    input; or, if nothing has a gradient, if they change with its output.

    Args:
        model: Any network.
        layers: Its layers by name.
        images: ``(N, C, H, W)``; two are enough.

    Returns:
        Names, in order of registration. Both are empty if the network does not run.
    """
    with preserve_modes(model):
        model.eval()
        trial = _Trial(model, layers, images)
        first = trial.replay(torch.rand(images.shape, generator=torch.Generator().manual_seed(1)).to(images))
        last = _last_layers(model, layers, images) or {x for x in layers if trial.changes_logits(x)}
    return tuple(name for name in layers if name in first), tuple(name for name in layers if name in last)


class _Trial:
    """A forward pass whose layers can be made to give the same outputs again, whatever they are shown.

    Args:
        model: In evaluation mode.
        layers: Its layers by name.
        images: ``(N, C, H, W)``.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> None:
        self._model, self._layers, self._images = model, layers, images
        self._calls: dict[str, list[tuple[list[Tensor], Any]]] = {name: [] for name in layers}
        self._logits = self._run(images, self._record)

    def replay(self, images: Tensor) -> set[str]:
        """The layers whose inputs differ on other images."""
        seen: set[str] = set()
        self._run(images, lambda name, number, inputs, output: self._again(name, number, inputs, output, seen))
        return seen

    def changes_logits(self, changed: str) -> bool:
        """Whether the logits change with the outputs of one layer."""

        def change(name: str, number: int, inputs: list[Tensor], output: Any) -> Any:
            output = self._again(name, number, inputs, output, set())
            return _map_tensors(lambda each: 1 - 2 * each, output) if name == changed else output

        return not _are_equal([*_tensors(self._logits)], [*_tensors(self._run(self._images, change))])

    def _record(self, name: str, number: int, inputs: list[Tensor], output: Any) -> Any:
        self._calls[name].append((inputs, _map_tensors(torch.clone, output)))
        return output

    def _again(self, name: str, number: int, inputs: list[Tensor], output: Any, seen: set[str]) -> Any:
        earlier, result = self._calls[name][number] if number < len(self._calls[name]) else ([], output)
        if not _are_equal(earlier, inputs):
            seen.add(name)
        return _map_tensors(torch.clone, result)

    def _run(self, images: Tensor, after_call: Callable[[str, int, list[Tensor], Any], Any]) -> Any:
        """Logits, where the output of each call of a layer is what ``after_call`` makes of it."""
        inputs: dict[str, list[list[Tensor]]] = {name: [] for name in self._layers}

        def watch(name: str, layer: nn.Module) -> Iterator[Any]:
            def before_forward(module: nn.Module, args: Any, kwargs: Any) -> None:
                inputs[name].append([each.clone() for each in _tensors([*args, *kwargs.values()])])

            def after_forward(module: nn.Module, args: Any, output: Any) -> Any:
                return after_call(name, len(inputs[name]) - 1, inputs[name][-1], output)

            yield layer.register_forward_pre_hook(before_forward, with_kwargs=True)
            yield layer.register_forward_hook(after_forward)

        handles = [handle for name, layer in self._layers.items() for handle in watch(name, layer)]
        try:
            with torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
                torch.manual_seed(0)  # Noise of the network's own is the same in every pass.
                return _try(self._model, images.clone())
        finally:
            for handle in handles:
                handle.remove()


def _are_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(some, others, strict=False)
    return len(some) == len(others) and all(torch.equal(one, other) for one, other in pairs)


def _last_layers(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> set[str]:
    outputs: list[tuple[str, Tensor]] = []

    def watch(name: str, layer: nn.Module) -> Any:
        def after_forward(module: nn.Module, args: Any, output: Any) -> Any:
            cut = _map_tensors(lambda each: each.detach().requires_grad_(True), output)
            outputs.extend((name, each) for each in _tensors(cut) if each.requires_grad)
            return _map_tensors(torch.clone, cut)  # Operations in place are not allowed on what was differentiated by.

        return layer.register_forward_hook(after_forward)

    handles = [watch(name, layer) for name, layer in layers.items()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad():
            model.requires_grad_(False)
            return _reached(_try(model, images), outputs)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _reached(logits: Any, outputs: list[tuple[str, Tensor]]) -> set[str]:
    """The layers on whose outputs the logits depend."""
    if not isinstance(logits, Tensor) or not logits.requires_grad or not outputs or logits.is_complex():
        return set()
    grads = torch.autograd.grad(logits.sum(), [output for _, output in outputs], allow_unused=True)
    return {name for (name, _), grad in zip(outputs, grads, strict=True) if grad is not None}


def _try(model: nn.Module, images: Tensor) -> Any:
    try:
        return model(images.clone())  # which it may write to
    except Exception:  # No gradient, or images that it does not take, of which run() tells.
        return None


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same, applied to a tensor of floating-point numbers, or to those in a tuple or list."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    return type(value)(_map_tensors(function, each) for each in value) if type(value) in (tuple, list) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution"})


class _ProductsWithWeights(TorchDispatchMode):
    """Note the parameters, and what is computed from nothing else, that are multiplied in matrix products.

    Args:
        names: Of the parameters, by the address of their values.
        inside: The layers that are running, in which products do not count.
    """

    def __init__(self, names: Mapping[int, str], inside: list[str]) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self._names, self._inside = dict(names), inside
        self._held: list[Tensor] = []  # so that no other tensor gets the address of one

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        operands = [name for each in _tensors(list(args)) if (name := self._name(each))]
        if not operands:
            return output
        kind, total = func.overloadpacket.__name__, len(list(_tensors(list(args))))
        if (kind in _PRODUCTS or "scaled_dot_product" in kind) and not self._inside and len(operands) < total:
            self.found.update(dict.fromkeys(operands))
        if len(operands) == total:
            for each in _tensors(output):
                if not is_special(each):
                    self._names.setdefault(_address(each), operands[0])
                    self._held.append(each)
        return output

    def _name(self, tensor: Tensor) -> str:
        return "" if is_special(tensor) else self._names.get(_address(tensor), "")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def weights_outside_layers(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> tuple[str, ...]:
    """Names of the parameters that a network multiplies in matrix products outside its layers.

    Examples are the learned queries of some attention modules, and weights of a layer that are applied without calling
    it. Scales and offsets that are multiplied or added element by element are not meant.

    Args:
        model: Any network.
        layers: Its layers by name; products inside them do not count.
        images: ``(N, C, H, W)``; two are enough.
    """
    inside: list[str] = []

    def watch(name: str, layer: nn.Module) -> Iterator[Any]:
        def enter(module: nn.Module, args: Any) -> None:
            inside.append(name)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            inside.pop()

        yield layer.register_forward_pre_hook(enter)
        yield layer.register_forward_hook(leave)

    plain = {name: each for name, each in model.named_parameters() if not is_special(each)}
    names = {_address(each): name for name, each in plain.items() if each.dim() > 1}
    handles = [handle for name, layer in layers.items() for handle in watch(name, layer)]
    try:
        with preserve_modes(model), torch.no_grad(), _ProductsWithWeights(names, inside) as products:
            model.eval()
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(products.found)


def run(model: nn.Module, images: Tensor) -> None:
    """Call a network on images, for the hooks or statistics inside it.

    Raises:
        InputError: If the network does not accept them, fails, or writes to them.
    """
    given = images.clone()
    try:
        model(images)
    except EmpirError:
        raise
    except Exception as error:
        kind = f"images of shape {tuple(images.shape)} and type {str(images.dtype).removeprefix('torch.')}"
        raise InputError(f"{type(model).__name__} does not take {kind}: it fails with {cause(error)}") from error
    if not torch.equal(images, given):
        images.copy_(given)
        raise InputError(WRITES_TO_INPUT)


@contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module on exit."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def recalibrate_(model: nn.Module, images: Tensor) -> int:
    """Estimate the statistics of a network's batch normalisations anew, as averages over batches of 256.

    Another precision shifts the outputs of every layer; with the old statistics, accuracy can drop to chance. The
    weights and the mode of the network stay the same.

    Args:
        model: Any network.
        images: ``(N, C, H, W)`` in [0, 1].

    Returns:
        How many normalisations have new statistics.

    Raises:
        InputError: If the images are invalid, or the network does not accept them.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1))
        >>> recalibrate_(network, torch.full((4, 1, 2, 2), 0.5))
        1
        >>> network[0].running_mean
        tensor([0.5000])
    """
    images = check_images(model, images)
    with _averaging(model) as norms:
        for batch in images.tensor_split(math.ceil(len(images) / _BATCH)):
            run(model, batch)
    return len(norms)


@torch.no_grad()
def start_ranges_(model: nn.Module, images: Tensor) -> None:
    """Start learned ranges at the 99.9 % quantile of the magnitude of each layer's input.

    A single pass sets them all, so each layer sees the outputs of the quantized layers before it. Batch normalisations
    use the statistics of the images.

    Args:
        model: A network with learned ranges.
        images: ``(N, C, H, W)`` in [0, 1]: one batch.
    """

    def start(layer: Any, args: Any, kwargs: Any) -> None:
        inputs = in_float32(input_of_call(args, kwargs))
        values = inputs.abs() if is_signed(layer.activation_quantizer) else inputs.clamp_min(0)
        rank = max(1, math.ceil(_QUANTILE * values.numel()))
        layer.activation_bound.fill_(values.flatten().kthvalue(rank).values.clamp_min(_SMALLEST_BOUND))

    learning = [layer for _, layer in quantized_layers(model) if layer.activation_bound is not None]
    handles = [layer.register_forward_pre_hook(start, with_kwargs=True) for layer in learning]
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with _averaging(model):
            run(model, check_images(model, images)[:_BATCH])
    finally:
        for handle in handles:
            handle.remove()
        restore_buffers_(model, before)


@contextmanager
def _averaging(model: nn.Module) -> Iterator[list[Any]]:
    """Evaluation mode, except for batch normalisations: their statistics become averages over the batches inside."""
    norms: list[Any] = [module for module in model.modules() if _has_statistics(module)]
    before = {name: value.clone() for name, value in model.named_buffers()}
    momenta = [norm.momentum for norm in norms]
    with preserve_modes(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        try:
            yield norms
        except BaseException:
            restore_buffers_(model, before)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@torch.no_grad()
def restore_buffers_(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write earlier copies of a network's buffers back into them."""
    for name, value in model.named_buffers():
        value.copy_(before[name])


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
