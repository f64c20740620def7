"""Let integer layers hand codes to each other, through the network's graph.

Batch normalisation becomes part of the layer before it. Where nothing but a ReLU, a max pooling, a zero padding or a
flattening lies between two integer layers, the first one's kernel clips and rounds its own output, and what lies
between works on bytes: rounding keeps the order of values, so that it may come before the pooling. The network's
function stays the same up to the rounding of float32.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

from torch import fx, nn

from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer_grid import Grid, StaysFloat
from empir_plugin.models.integer_layers import IntegerLayer
from empir_plugin.models.integer_nodes import (
    bypass,
    call_instead,
    is_frozen_norm,
    is_relu,
    is_sum,
    keeps_order,
    only_user,
    put_on_codes,
    writes_fresh,
)
from empir_plugin.models.integer_selftest import check_emitted, check_folded
from empir_plugin.models.integer_steps import AddAndRound, AddInto, Codes
from empir_plugin.models.layers import QuantizedLayer


def fused(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """A network whose integer layers hand each other codes, and notes on what could not be done.

    The members of an ensemble are taken one by one, and exchanged in it, so give a copy. A network whose graph cannot
    be traced comes back as it is.
    """
    if isinstance(network, Ensemble):
        return network, _fuse_members_(network)
    if not any(isinstance(module, IntegerLayer) for module in network.modules()):
        return network, []
    notes = [note for inner in network.modules() if isinstance(inner, Ensemble) for note in _fuse_members_(inner)]
    # Tracing begins in the root's forward, past its own hooks; a child is called with them.
    root = nn.Sequential(network) if _has_hooks(network) else network
    try:
        traced = fx.GraphModule(root, _Tracer().trace(root))
    except Exception as error:  # tracing runs foreign code on stand-ins, which may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = f"{type(network).__name__} cannot be traced, so each layer rounds its own input: {reason}"
        return network, [*notes, note]
    return traced, notes + _Fusion(traced.eval()).run()


def _has_hooks(network: nn.Module) -> bool:
    return bool(network._forward_pre_hooks or network._forward_hooks)


def _fuse_members_(ensemble: Ensemble) -> list[str]:
    each = [fused(member) for member in ensemble.members]
    ensemble.members = nn.ModuleList([member for member, _ in each])
    return [note for _, notes in each for note in notes]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (QuantizedLayer, Ensemble)) or super().is_leaf_module(m, module_qualified_name)


class _Fusion:
    """One pass over a traced network."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
        self.once = {target for target, count in calls.items() if count == 1}
        self.on_codes: set[fx.Node] = set()
        self.notes: list[str] = []

    def run(self) -> list[str]:
        """Rewrite the graph; returns what could not be done."""
        for step in (self._fold_norm, self._emit):
            for node in list(self.traced.graph.nodes):
                layer = self._layer(node)
                if layer is not None and node.target in self.once:
                    step(node, layer)
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
        return self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _layer(self, node: fx.Node) -> IntegerLayer | None:
        module = self._module(node)
        return module if isinstance(module, IntegerLayer) else None

    def _replace(self, node: fx.Node, layer: IntegerLayer) -> None:
        self.traced.set_submodule(str(node.target), layer)

    def _fold_norm(self, node: fx.Node, layer: IntegerLayer) -> None:
        following = only_user(node)
        norm = None if following is None else self._module(following)
        if following is None or norm is None or not is_frozen_norm(norm):
            return
        folded = _normalised(layer, norm)
        try:
            check_folded(layer, folded, norm)
        except StaysFloat as reason:
            self.notes.append(f"{following.target} is not folded into {node.target}: {reason}")
            return
        self._replace(node, folded)
        bypass(following)

    def _emit(self, node: fx.Node, layer: IntegerLayer) -> None:
        route = self._route(node)
        if route is None:
            self._absorb_relu(node, layer)
            return
        between, grid = route
        emitting = layer.reworked(emits=grid)
        try:
            check_emitted(layer, emitting, grid)
        except StaysFloat as reason:
            self.notes.append(f"{node.target} does not emit codes: {reason}")
            return
        self._replace(node, emitting)
        self.on_codes.update([node, *between])
        for passed in between:
            put_on_codes(self.traced, passed, self._module(passed))

    def _route(self, node: fx.Node) -> tuple[list[fx.Node], Grid] | None:
        """What lies between a layer and the integer layers that alone take its output, and their grid."""
        between: list[fx.Node] = []
        while (grid := self._common_grid(node)) is None:
            following = only_user(node)
            if following is None or not keeps_order(following, self._module(following)):
                return None
            between.append(following)
            node = following
        return (between, grid) if grid.starts_at_zero else None

    def _common_grid(self, node: fx.Node) -> Grid | None:
        """The grid of all layers that take a node's output, if they are integer layers of one grid."""
        grids = {None if (layer := self._layer(user)) is None else layer.grid for user in node.users}
        return grids.pop() if len(grids) == 1 else None

    def _absorb_relu(self, node: fx.Node, layer: IntegerLayer) -> None:
        following = only_user(node)
        if following is not None and is_relu(following, self._module(following)):
            self._replace(node, layer.reworked(relu=True))
            bypass(following)

    def _add_in_place(self, node: fx.Node) -> None:
        """Put a sum, and a ReLU after it, where an integer layer wrote: fresh memory costs more time than both."""
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
        """Put a ReLU where a layer in float wrote, for the same reason."""
        (source,) = node.all_input_nodes
        if only_user(source) is node and writes_fresh(self._module(source)):
            call_instead(self.traced, node, nn.ReLU(inplace=True), (source,))

    def _round_once(self) -> None:
        """Round an output that several integer layers take once for all of them, and a sum while it is at hand."""
        for node in list(self.traced.graph.nodes):
            takers = [(user, layer.grid) for user in node.users if (layer := self._layer(user)) is not None]
            grids = {grid for _, grid in takers}
            if len(grids) != 1 or node in self.on_codes:
                continue
            users, grid, summed = [user for user, _ in takers], grids.pop(), self._module(node)
            if type(summed) is AddInto:
                self._round_sum(node, users, AddAndRound(summed.relu, grid))
            elif len(users) > 1:
                self._insert_codes(node, users, grid)

    def _insert_codes(self, node: fx.Node, takers: list[fx.Node], grid: Grid) -> None:
        name = f"codes_of_{node.name}"
        self.traced.add_submodule(name, Codes(grid))
        with self.traced.graph.inserting_after(node):
            codes = self.traced.graph.call_module(name, (node,))
        for taker in takers:
            taker.replace_input_with(node, codes)

    def _round_sum(self, node: fx.Node, takers: list[fx.Node], both: AddAndRound) -> None:
        others = [user for user in node.users if user not in takers]
        call_instead(self.traced, node, both, node.args)
        for index, users in enumerate((others, takers)):
            if not users:
                continue
            with self.traced.graph.inserting_after(node):
                part = self.traced.graph.call_function(operator.getitem, (node, index))
            for user in users:
                user.replace_input_with(node, part)


def _normalised(layer: IntegerLayer, norm: Any) -> IntegerLayer:
    """The layer with a batch normalisation folded into its scale and bias."""
    spread = (norm.running_var.double() + norm.eps).sqrt()
    gain = (1.0 if norm.weight is None else norm.weight.detach().double()) / spread
    shift = 0.0 if norm.bias is None else norm.bias.detach().double()
    offset = 0.0 if layer.work.bias is None else layer.work.bias
    bias = (offset - norm.running_mean.double()) * gain + shift
    return layer.reworked(scale=layer.work.scale * gain, bias=bias)
