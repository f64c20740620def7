"""From a model to a graph of ONNX operations: ensembles, discretizations, and networks through their traced graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from empir_plugin.errors import cause
from empir_plugin.export.graph import Graph
from empir_plugin.export.operations import FUNCTIONS, MODULES, Call
from empir_plugin.export.quantized import Format, refuse, write_quantized
from empir_plugin.export.rules import write_rule
from empir_plugin.models.discretize import Discretized, InputDiscretizer, Levels
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.fold import Tracer, has_hooks
from empir_plugin.models.layers import QuantizedLayer

INPUT, BATCH = "images", 3


class _ModuleTracer(Tracer):
    """Discretizations are one call as well."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Discretized) or super().is_leaf_module(m, module_qualified_name)


@torch.no_grad()
def write_model(graph: Graph, model: nn.Module, shape: tuple[int, ...], form: Format) -> tuple[str, tuple[int, ...]]:
    """Add a whole model.

    Args:
        graph: It is changed.
        model: A frozen copy in evaluation mode, in float32 on the CPU.
        shape: Of one image, ``(C, H, W)``.
        form: Of the file.

    Returns:
        The name of the model's output, and its shape for a batch of :data:`BATCH` images.

    Raises:
        InputError: If a part of the model cannot be exported; it is named.

    Example:
        >>> graph = Graph()
        >>> write_model(graph, nn.Sequential(nn.Flatten(), nn.ReLU()).eval(), (1, 2, 2), Format.ONNX)
        ('1.Relu', (3, 4))
        >>> [node.op for node in graph.nodes]
        ['Reshape', 'Relu']
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise refuse(graph, f"{name} is {tensor.dtype}, and files hold float32: call model.float() first")
    x = torch.rand((BATCH, *shape), generator=torch.Generator().manual_seed(0))
    return _Writer(form).module(graph, model, INPUT, x)


class _Called(nn.Module):
    """A network, called with its hooks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class _Writer:
    def __init__(self, form: Format) -> None:
        self.form = form

    def module(self, graph: Graph, module: nn.Module, x: str, example: Tensor) -> tuple[str, tuple[int, ...]]:
        """Add a module with one input; the name and the shape of its output."""
        one_operation = isinstance(module, (Ensemble, Discretized, QuantizedLayer)) or type(module) in MODULES
        if has_hooks(module) and one_operation:
            raise refuse(graph, "it has forward hooks, which a file cannot hold")
        if "forward" in vars(module):
            raise refuse(graph, "its forward was replaced by another function")
        if isinstance(module, Ensemble) and type(module).forward is Ensemble.forward:
            return self._ensemble(graph, module, x, example)
        if isinstance(module, Discretized):
            return self._discretized(graph, module, x, example)
        if isinstance(module, QuantizedLayer):
            return write_quantized(graph, x, module, self.form), tuple(module(example).shape)
        if type(module) in MODULES:
            output = tuple(module(example).shape)
            call = Call(graph, (x,), tuple(example.shape), output, {})
            return MODULES[type(module)](call, module), output
        # Such as the normalization of images, which a hook applies.
        return self._network(graph, _Called(module) if has_hooks(module) else module, x, example)

    def _ensemble(self, graph: Graph, ensemble: Ensemble, x: str, example: Tensor) -> tuple[str, tuple[int, ...]]:
        written: list[tuple[str, tuple[int, ...]]] = []
        for index, member in enumerate(ensemble.members):
            with graph.scope(f"members.{index}"):
                written.append(self.module(graph, member, x, example))
        shape = written[0][1]
        return write_rule(graph, [name for name, _ in written], ensemble.rule, ensemble.leader, shape[-1]), shape

    def _discretized(self, graph: Graph, module: Discretized, x: str, example: Tensor) -> tuple[str, tuple[int, ...]]:
        quantizer = module.activation_quantizer
        x = write_discretizer(graph, x, quantizer)
        with graph.scope("network"):
            return self.module(graph, module.network, x, quantizer(example))

    def _network(self, graph: Graph, network: nn.Module, x: str, example: Tensor) -> tuple[str, tuple[int, ...]]:
        try:
            inside = network.network if isinstance(network, _Called) else None
            traced = fx.GraphModule(network, _ModuleTracer(inside).trace(network))
            ShapeProp(traced).propagate(example)
        except Exception as error:  # Third-party code on stand-ins may fail in any way.
            raise refuse(
                graph, f"the graph of its {type(network).__name__} cannot be traced ({cause(error)})"
            ) from error
        names: dict[fx.Node, Any] = {}
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                if names:
                    raise refuse(graph, "it has more than one input")
                names[node] = x
            elif node.op == "output":
                if not isinstance(node.args[0], fx.Node):
                    raise refuse(graph, "it returns something other than one tensor")
                return names[node.args[0]], _shape(node.args[0])
            elif _is_tensor(node):
                names[node] = self._node(graph, traced, node, names)
        raise refuse(graph, "it returns nothing")

    def _node(self, graph: Graph, traced: fx.GraphModule, node: fx.Node, names: dict[fx.Node, Any]) -> str:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            with graph.scope(owner):
                return graph.constant(getattr(traced.get_submodule(owner), name).detach().numpy())
        inputs = [_name_of(graph, argument, names) for argument in node.args]
        before = next((_shape(each) for each in node.all_input_nodes if _is_tensor(each)), ())
        if node.op == "call_module":
            with graph.scope(str(node.target)):
                return self._call_module(graph, traced.get_submodule(str(node.target)), inputs, node, before)
        named = {key: _name_of(graph, value, names) for key, value in node.kwargs.items()}
        if not inputs and "input" in named:
            inputs = [named.pop("input")]
        with graph.scope(_module_of(node)):
            return self._call_function(Call(graph, inputs, before, _shape(node), named), node)

    def _call_function(self, call: Call, node: fx.Node) -> str:
        write = FUNCTIONS.get(node.target)
        if write is None:
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            raise refuse(call.graph, f"no ONNX form of {target} is known")
        return write(call)

    def _call_module(
        self, graph: Graph, module: nn.Module, inputs: list[Any], node: fx.Node, before: tuple[int, ...]
    ) -> str:
        if len(inputs) != 1 or node.kwargs:
            raise refuse(graph, f"its {type(module).__name__} is called with more than one tensor")
        composite = isinstance(module, (Ensemble, Discretized, QuantizedLayer))
        if not composite and not has_hooks(module) and type(module) not in MODULES:
            raise refuse(graph, f"no ONNX form of a {type(module).__name__} is known")
        return self.module(graph, module, inputs[0], torch.zeros(before))[0]


def write_discretizer(graph: Graph, x: str, quantizer: InputDiscretizer) -> str:
    """Add the discretization of images; the name of its output."""
    n, constant = 2**quantizer.bits - 1, graph.constant
    clipped = graph.add("Clip", x, constant(0.0), constant(1.0))
    if quantizer.levels is Levels.ROUND:
        return graph.add("Div", graph.add("Round", graph.add("Mul", clipped, constant(n))), constant(n))
    pixels = graph.add("Round", graph.add("Mul", clipped, constant(255)))
    quotient = graph.add("Floor", graph.add("Div", pixels, constant(2 ** (8 - quantizer.bits))))
    if quantizer.levels is Levels.FLOOR:
        return graph.add("Div", quotient, constant(n))
    return graph.add("Div", graph.add("Add", quotient, constant(0.5)), constant(2**quantizer.bits))


def _module_of(node: fx.Node) -> str:
    """The name of the module whose code calls a function."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _is_tensor(node: fx.Node) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "shape")


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _name_of(graph: Graph, argument: Any, names: dict[fx.Node, Any]) -> Any:
    """The name of a tensor, or of each in a list; anything that is not computed stands for itself."""
    if isinstance(argument, (list, tuple)):
        return [_name_of(graph, each, names) for each in argument]
    return names.get(argument, argument) if isinstance(argument, fx.Node) else argument
