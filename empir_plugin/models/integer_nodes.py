"""Nodes of a traced network: which of them may as well work on codes, and what they are then."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from empir_plugin.models.integer_steps import PoolCodes

_RELU: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_POOL: tuple[Any, ...] = (F.max_pool2d, torch.max_pool2d)
_FLATTEN: tuple[Any, ...] = (torch.flatten, "flatten")
_ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that alone takes a node's output, if there is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def bypass(node: fx.Node) -> None:
    """Take a node of one input out of its graph."""
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def is_relu(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node, whose module is given if it calls one, is a ReLU."""
    return isinstance(module, nn.ReLU) or _calls(node, _RELU)


def keeps_order(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node gives the same when the rounding to codes comes before it: it only moves or compares values."""
    return is_relu(node, module) or _is_pool(node, module) or _is_zero_pad(node, module) or _is_neutral(node, module)


def put_on_codes(traced: fx.GraphModule, node: fx.Node, module: nn.Module | None) -> None:
    """Make a node that keeps the order work on codes."""
    if is_relu(node, module):
        bypass(node)  # no code is negative
    elif isinstance(module, nn.MaxPool2d):
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
        call_instead(traced, node, PoolCodes(*sizes), node.args[:1])
    elif _is_pool(node, module):
        call_instead(traced, node, PoolCodes(*node.args[1:], **node.kwargs), node.args[:1])


def call_instead(traced: fx.GraphModule, node: fx.Node, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Turn a node into the call of a new module."""
    name = f"{node.name}_integer"
    traced.add_submodule(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, args, {}


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds the outputs of two other nodes."""
    terms = [term for term in node.args if isinstance(term, fx.Node)]
    return _calls(node, _ADD) and len(terms) == len(node.args) == len(set(terms)) == 2 and not node.kwargs


def is_frozen_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch normalisation by fixed statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_plain(module) and not module.training


def writes_fresh(module: nn.Module | None) -> bool:
    """Whether a module in float returns memory of its own, which nobody misses once its only user has read it."""
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
