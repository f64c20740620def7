"""Fold batch normalization into the quantized layers before it, through the network's graph."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantizedLayer

_TOLERANCE = 1e-5
"""Largest difference that rounding explains, as a share of the largest output."""


class DrawsRandomNumbers(Exception):  # noqa: N818 - an ordinary outcome, whose text is the reason in a report
    """A network's code draws random numbers that a graph would hold as constants."""


class Tracer(fx.Tracer):
    """Traces a network down to its quantized layers; ensembles inside it, and parts with forward hooks, are one call.

    So hooks see tensors, not stand-ins for them. Random numbers are drawn from states that are restored.

    Args:
        inside: A part that is traced nevertheless, and its hooks with it, such as one that normalises the images.
    """

    def __init__(self, inside: nn.Module | None = None) -> None:
        super().__init__()
        self.inside = inside

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one call in the graph."""
        one_call = isinstance(m, (QuantizedLayer, Ensemble)) or (has_hooks(m) and m is not self.inside)
        return one_call or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        """The graph of a network.

        Raises:
            DrawsRandomNumbers: If its code draws random numbers outside of the graph.
        """
        with random_state_kept(root) as drawn:
            graph = super().trace(root, concrete_args)
            if drawn():
                raise DrawsRandomNumbers("its code draws random numbers, which a graph would hold as constants")
        return graph


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Restore the states of all random numbers of Python, NumPy and PyTorch after the block.

    Yields:
        Whether any of them was drawn since the start of the block.
    """
    found: tuple[Any, Any, Tensor] = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = list({each.device for each in model.parameters() if each.is_cuda})
    on_devices = [torch.cuda.get_rng_state(device) for device in devices]

    def drawn() -> bool:
        own, numpy, ours = found
        numpy_now: Any = np.random.get_state()
        same = random.getstate() == own and numpy_now[2:] == numpy[2:] and bool((numpy_now[1] == numpy[1]).all())
        now = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        return not (same and all(torch.equal(a, b) for a, b in zip(now, [ours, *on_devices], strict=True)))

    try:
        yield drawn
    finally:
        random.setstate(found[0])
        np.random.set_state(found[1])
        torch.set_rng_state(found[2])
        for device, state in zip(devices, on_devices, strict=True):
            torch.cuda.set_rng_state(state, device)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def fold_norms_(model: nn.Module) -> None:
    """Let quantized convolutions compute the batch normalization that follows them, in place of the modules that did.

    The network computes the same function up to rounding, in its modules as before: each folded module becomes an
    ``nn.Identity``. Networks whose graph cannot be traced are left unchanged.

    Args:
        model: A private copy in evaluation mode.

    Example:
        >>> from empir_plugin.models.layers import QuantConv2d
        >>> from empir_plugin.models.quantize import Precision
        >>> conv = QuantConv2d(3, 8, 3, bias=False, precision=Precision.parse("w2a2"))
        >>> model = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_norms_(model)
        >>> model
        Sequential(
          (0): QuantConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), bias=False, precision=w2a2)
          (1): Identity()
          (2): ReLU()
        )
    """
    shared = _modules_with_several_names(model)
    ensembles = [module for module in model.modules() if isinstance(module, Ensemble)]
    for network in [*(member for ensemble in ensembles for member in ensemble.members), model]:
        _fold_in_network_(network, shared)


def _fold_in_network_(network: nn.Module, shared: set[nn.Module]) -> None:
    quantized = any(isinstance(module, QuantizedLayer) for module in network.modules())
    if not quantized or not any(_is_frozen_norm(module) for module in network.modules()):
        return
    for layer_name, norm_name in _foldable(network, shared):
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        if isinstance(layer, QuantizedLayer) and _folds_exactly_(layer, norm):
            network.set_submodule(norm_name, nn.Identity())


def _foldable(network: nn.Module, shared: set[nn.Module]) -> list[tuple[str, str]]:
    """Names of layers with exact sums, each with that of the normalization that is the only user of its output."""
    # Tracing runs the network's code on stand-ins for tensors, which may end up in its attributes.
    root = copy.deepcopy(network)
    try:
        graph = Tracer().trace(root)
        calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
        pairs = list(_pairs(graph, network, calls, shared))
        for _, norm_name in pairs:
            root.set_submodule(norm_name, nn.Identity())
        Tracer().trace(root)  # The code may read attributes of the normalization, which the identity lacks.
    except Exception:  # Third-party code on stand-ins may fail in any way; such a network is computed as it is.
        return []
    return pairs


def _pairs(
    graph: fx.Graph, network: nn.Module, calls: Counter[str], shared: set[nn.Module]
) -> Iterator[tuple[str, str]]:
    used_directly = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        following = next(iter(node.users)) if len(node.users) == 1 else None
        if node.op != "call_module" or following is None or following.op != "call_module":
            continue
        names = str(node.target), str(following.target)
        layer, norm = (network.get_submodule(name) for name in names)
        plain = all(calls[name] == 1 and name not in used_directly for name in names) and not {layer, norm} & shared
        if plain and _is_convolution(layer) and _is_frozen_norm(norm) and not _hooks(layer, norm):
            yield names


def _modules_with_several_names(network: nn.Module) -> set[nn.Module]:
    names = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    return {module for module, count in names.items() if count > 1}


def _hooks(*modules: nn.Module) -> bool:
    return any(map(has_hooks, modules))


def _is_convolution(module: nn.Module) -> bool:
    """Whether the second dimension of a quantized layer is its channels, as a normalization assumes."""
    return isinstance(module, QuantizedLayer) and isinstance(module, nn.Conv2d)


def _is_frozen_norm(module: nn.Module) -> bool:
    """Whether a module is a batch normalization with fixed statistics."""
    return type(module) is nn.BatchNorm2d and not module.training and getattr(module, "running_var", None) is not None


@torch.no_grad()
def _folds_exactly_(layer: QuantizedLayer, norm: nn.Module) -> bool:
    """Fold a normalization into a layer, if the outputs are the same up to rounding."""
    if layer.integer_weights() is None or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return False
    x = _random_inputs(layer)
    expected = norm(layer(x))
    layer.fold_(norm)
    difference, size = (layer(x) - expected).abs().max().item(), expected.abs().max().item()
    if difference <= _TOLERANCE * size:
        return True
    layer._folded = None
    return False


def _random_inputs(layer: QuantizedLayer) -> Tensor:
    shape = (4, layer.weight.shape[1])
    if isinstance(layer, nn.Conv2d):
        sides = zip(layer.kernel_size, layer.dilation, strict=True)
        shape = (4, layer.in_channels, *(dilation * (kernel - 1) + 2 for kernel, dilation in sides))
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return inputs.to(layer.weight)
