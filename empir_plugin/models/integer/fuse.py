"""Fuse a network of integer layers, through its graph: layers pass codes to each other instead of floats.

Where only ReLUs, max pooling, zero padding or flattening lie between two integer layers, the first layer's kernel clips
and rounds its own output, and the operations between work on codes: rounding keeps the order of values, so it can come
before the pooling. The network computes the same function, bit for bit.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.codes import Grid, Scratch, StaysFloat, pieces
from empir_plugin.models.integer.fold import Tracer, has_hooks
from empir_plugin.models.integer.kernels import pool_codes
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.integer.selftest import emitting


class Codes(nn.Module):
    """Round float inputs of any shape to codes, once for all layers that take them."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Codes, uint8, of the same shape."""
        return self.grid.codes(x)


class PoolCodes(nn.Module):
    """Max pooling of codes, uint8 ``(N, C, H, W)``; the arguments are those of ``max_pool2d`` after the first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs

    def forward(self, codes: Tensor) -> Tensor:
        """Pool codes ``(N, C, H, W)``."""
        return pool_codes(codes, *self.args, **self.kwargs)


class AddInto(nn.Module):
    """Sum of two tensors, or its ReLU, computed in place in the first, which has no other user."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, fresh: Tensor, other: Tensor) -> Tensor:
        """Add; in new memory if the shapes differ."""
        fresh, other = _match_shapes(fresh, other)
        for total, term in pieces(fresh, other):
            _add_(total, term, self.relu)
        return fresh


class AddAndRound(nn.Module):
    """The same sum, together with its codes, for users of either; ``check`` says whether a term may be NaN."""

    def __init__(self, relu: bool, grid: Grid, check: bool = True) -> None:
        super().__init__()
        self.relu, self.grid, self.check = relu, grid, check

    def forward(self, fresh: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, and its codes, uint8, of the same shape."""
        fresh, other = _match_shapes(fresh, other)
        codes, scratch = self.grid.empty_codes(fresh), Scratch()
        for total, term, out in pieces(fresh, other, codes):
            _add_(total, term, self.relu)
            self.grid.round_into(total, out, scratch, check=self.check)
        return fresh, codes.view(torch.uint8)


def _match_shapes(fresh: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two terms of the same shape and type, of which the first may be overwritten."""
    if fresh.shape == other.shape and fresh.dtype == other.dtype:
        return fresh, other
    total = fresh + other
    return total, torch.zeros_like(total)


def _add_(total: Tensor, term: Tensor, relu: bool) -> None:
    total.add_(term)
    if relu:
        total.relu_()


def fuse(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return a network whose integer layers pass each other codes, and notes on what could not be fused.

    Members of an ensemble are fused one by one and replaced in place, so pass a copy. A network whose graph cannot be
    traced is returned unchanged.
    """
    if isinstance(network, Ensemble):
        return network, _fuse_members_(network)
    if not any(isinstance(module, IntegerLayer) for module in network.modules()):
        return network, []
    notes = [note for inner in network.modules() if isinstance(inner, Ensemble) for note in _fuse_members_(inner)]
    # Tracing starts at the root's forward and skips its hooks; those of a child are called.
    root = nn.Sequential(network) if has_hooks(network) else network
    try:
        graph = Tracer(network).trace(root)
        for node in graph.nodes:
            node.type = None  # annotations as text, which torch up to 2.5 cannot pickle
        traced = fx.GraphModule(root, graph)
    except Exception as error:  # tracing runs third-party code on proxies, which may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = f"{type(network).__name__} cannot be traced, so each layer rounds its own input: {reason}"
        return network, [*notes, note]
    return traced, notes + _Fusion(traced.eval()).run()


def _fuse_members_(ensemble: Ensemble) -> list[str]:
    each = [fuse(member) for member in ensemble.members]
    ensemble.members = nn.ModuleList([member for member, _ in each])
    return [note for _, notes in each for note in notes]


class _Fusion:
    """One pass over a traced network."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
        self.once = {target for target, count in calls.items() if count == 1}
        self.on_codes: set[fx.Node] = set()
        self.notes: list[str] = []

    def run(self) -> list[str]:
        """Rewrite the graph; returns notes on what could not be fused."""
        for node in list(self.traced.graph.nodes):
            if type(self._module(node)) is nn.Identity:  # a folded normalization leaves one behind
                bypass(node)
        for node in list(self.traced.graph.nodes):
            layer = self._layer(node)
            if layer is not None and node.target in self.once:
                self._emit(node, layer)
        for node in [node for node in self.traced.graph.nodes if is_sum(node)]:
            self._add_in_place(node)
        for node in [node for node in self.traced.graph.nodes if is_relu(node, self._module(node))]:
            self._rectify_in_place(node)
        self._round_once()
        self.traced.graph.lint()
        self.traced.delete_all_unused_submodules()
        self.traced.recompile()
        return self.notes

    def _module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None as well for a module with hooks, which must see what it saw before."""
        module = self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        return None if module is None or has_hooks(module) else module

    def _layer(self, node: fx.Node) -> IntegerLayer | None:
        module = self._module(node)
        return module if isinstance(module, IntegerLayer) else None

    def _replace(self, node: fx.Node, layer: IntegerLayer) -> None:
        self.traced.set_submodule(str(node.target), layer)

    def _emit(self, node: fx.Node, layer: IntegerLayer) -> None:
        route = self._route(node)
        if route is None:
            self._absorb_relu(node, layer)
            return
        between, grid = route
        try:
            op = emitting(layer.op, grid, layer.kernel)
        except StaysFloat as reason:
            self.notes.append(f"{node.target} does not emit codes: {reason}")
            return
        self._replace(node, IntegerLayer(layer.precision, layer.grid, op, layer.kernel))
        self.on_codes.update([node, *between])
        for passed in between:
            put_on_codes(self.traced, passed, self._module(passed))

    def _route(self, node: fx.Node) -> tuple[list[fx.Node], Grid] | None:
        """The nodes between a layer and the integer layers that are its only users, and the grid of these."""
        between: list[fx.Node] = []
        while (grid := self._common_grid(node)) is None:
            following = only_user(node)
            if following is None or not keeps_order(following, self._module(following)):
                return None
            between.append(following)
            node = following
        return (between, grid) if grid.is_default else None

    def _common_grid(self, node: fx.Node) -> Grid | None:
        """The grid of a node's users, if all of them are integer layers of one grid."""
        grids = {None if (layer := self._layer(user)) is None else layer.grid for user in node.users}
        return grids.pop() if len(grids) == 1 else None

    def _absorb_relu(self, node: fx.Node, layer: IntegerLayer) -> None:
        following = only_user(node)
        if following is not None and is_relu(following, self._module(following)):
            self._replace(node, layer.with_changes(relu=True))
            bypass(following)

    def _add_in_place(self, node: fx.Node) -> None:
        """Compute a sum, and its ReLU, in an integer layer's output: allocating memory takes longer than both."""
        terms = [term for term in node.args if isinstance(term, fx.Node)]
        fresh = [term for term in terms if self._layer(term) is not None and only_user(term) is node]
        if not fresh:
            return
        following = only_user(node)
        relu = following is not None and is_relu(following, self._module(following))
        if following is not None and relu:
            bypass(following)
        other = next(term for term in terms if term is not fresh[0])
        call_instead(self.traced, node, AddInto(relu), (fresh[0], other))

    def _rectify_in_place(self, node: fx.Node) -> None:
        """Compute a ReLU in the output of a float layer, for the same reason."""
        (source,) = node.all_input_nodes
        if only_user(source) is node and writes_fresh(self._module(source)):
            call_instead(self.traced, node, nn.ReLU(inplace=True), (source,))

    def _round_once(self) -> None:
        """Round an output once for all integer layers that use it, and a sum while it is in the cache."""
        for node in list(self.traced.graph.nodes):
            with_grid = [(user, layer.grid) for user in node.users if (layer := self._layer(user)) is not None]
            grids = {grid for _, grid in with_grid}
            if len(grids) != 1 or node in self.on_codes:
                continue
            users, grid, summed = [user for user, _ in with_grid], grids.pop(), self._module(node)
            if type(summed) is AddInto:
                self._round_sum(node, users, AddAndRound(summed.relu, grid, check=not self._is_number(node)))
            elif len(users) > 1:
                self._insert_codes(node, users, grid)

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a node's output is never NaN, or another node raises in that case."""
        module = self._module(node)
        if isinstance(module, IntegerLayer):
            return module.op.is_bounded
        if isinstance(module, (AddInto, AddAndRound)) or node.target is operator.getitem:
            return all(self._is_number(term) for term in node.all_input_nodes)
        return any(self._layer(user) is not None or type(self._module(user)) is Codes for user in node.users)

    def _insert_codes(self, node: fx.Node, users: list[fx.Node], grid: Grid) -> None:
        name = f"codes_of_{node.name}"
        self.traced.add_submodule(name, Codes(grid))
        with self.traced.graph.inserting_after(node):
            codes = self.traced.graph.call_module(name, (node,))
        for user in users:
            user.replace_input_with(node, codes)

    def _round_sum(self, node: fx.Node, on_codes: list[fx.Node], both: AddAndRound) -> None:
        others = [user for user in node.users if user not in on_codes]
        call_instead(self.traced, node, both, node.args)
        for index, users in enumerate((others, on_codes)):
            if not users:
                continue
            with self.traced.graph.inserting_after(node):
                part = self.traced.graph.call_function(operator.getitem, (node, index))
            for user in users:
                user.replace_input_with(node, part)


_RELU: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_POOL: tuple[Any, ...] = (F.max_pool2d, torch.max_pool2d)
_FLATTEN: tuple[Any, ...] = (torch.flatten, "flatten")
_ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)


def only_user(node: fx.Node) -> fx.Node | None:
    """The only user of a node's output; None if there are several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def bypass(node: fx.Node) -> None:
    """Remove a node of one input from its graph."""
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def is_relu(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node is a ReLU; ``module`` is the module it calls, if it calls one."""
    return isinstance(module, nn.ReLU) or _calls(node, _RELU)


def keeps_order(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node only moves or compares values, so that rounding to codes may come before it."""
    return is_relu(node, module) or _is_pool(node, module) or _is_zero_pad(node, module) or _is_neutral(node, module)


def put_on_codes(traced: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> None:
    """Let a node that keeps the order take codes."""
    if is_relu(node, module):
        bypass(node)  # no code is negative
    elif isinstance(module, nn.MaxPool2d):
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        call_instead(traced, node, PoolCodes(*sizes), tuple(node.all_input_nodes))
    elif _is_pool(node, module):
        call_instead(traced, node, PoolCodes(*node.args[1:], **node.kwargs), node.args[:1])


def call_instead(traced: fx.GraphModule, node: fx.Node, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Replace a node by the call of a new module."""
    name = f"{node.name}_integer"
    traced.add_submodule(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, args, {}


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds the outputs of two other nodes."""
    terms = [term for term in node.args if isinstance(term, fx.Node)]
    return _calls(node, _ADD) and len(terms) == len(node.args) == len(set(terms)) == 2 and not node.kwargs


def is_frozen_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch normalisation with fixed statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_plain(module) and not module.training


def writes_fresh(module: nn.Module | None) -> bool:
    """Whether a float module returns new memory, which its only user may overwrite."""
    return is_frozen_norm(module) or type(module) in (nn.Conv2d, nn.Linear)


def _is_plain(module: nn.modules.batchnorm._BatchNorm) -> bool:
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.running_var is not None


def _is_pool(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.MaxPool2d):
        return not bool(module.return_indices)
    settings = (*node.args[1:], *node.kwargs.values())
    known = 1 <= len(node.args) < 7 and not any(isinstance(setting, fx.Node) for setting in settings)
    return _calls(node, _POOL) and known and node.kwargs.get("return_indices", False) is False


def _is_zero_pad(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.ZeroPad2d):
        return True
    given: dict[str, Any] = {**dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)), **node.kwargs}
    return _calls(node, (F.pad,)) and given.get("mode", "constant") == "constant" and given.get("value") in (None, 0)


def _is_neutral(node: fx.Node, module: nn.Module | None) -> bool:
    return isinstance(module, _NEUTRAL) or _calls(node, _FLATTEN)


def _calls(node: fx.Node, targets: tuple[Any, ...]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets
