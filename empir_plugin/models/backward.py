"""The clip to [0, 1] inside activation quantizers, and the gradients an attacker may use for it.

A clip is flat outside [0, 1]. An activation out of this range passes no gradient to the layers before it, although the
decision is no harder to change: gradient masking. Backward pass differentiable approximation (BPDA, Athalye et al.,
https://arxiv.org/abs/1802.00420) solves this: the same forward pass, bit for bit, with another slope in the backward
pass. Only an attacker's gradients change; training keeps :data:`as_trained`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from empir_plugin.errors import InputError


class BackwardRule(Protocol):
    """A clip to [0, 1] with a gradient of its own."""

    def __call__(self, x: Tensor) -> Tensor:
        """Clip activations of any shape to [0, 1]; the backward pass has the rule's slope."""
        ...

    def backward(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient at ``x`` from that of the clipped activations, of the same shape."""
        ...


class ElementwiseFunction(torch.autograd.Function):
    """Base of functions whose gradient is stated: that of every element of the first input, times ``slope``."""

    generate_vmap_rule = True

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        """The slope at ``x``, of its shape; the arguments are those of ``forward``."""
        raise NotImplementedError


class _WithSlope(torch.autograd.Function):
    """A value and its slope in ``x``, for forward-mode differentiation as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (slope,) = ctx.saved_tensors
        return tangents[0] * slope


def is_transformed() -> bool:
    """Whether derivatives are computed in forward mode, or by a transform of ``torch.func``."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return forward_ad._current_level >= 0 or functorch.peek_interpreter_stack() is not None


def apply(function: type[ElementwiseFunction], x: Tensor, *args: Any) -> Tensor:
    """Call an elementwise function on tensors of any shape, for differentiation in either mode.

    Example:
        >>> torch.func.jvp(as_trained, (torch.tensor([0.5, 2.0]),), (torch.ones(2),))
        (tensor([0.5000, 1.0000]), tensor([1., 0.]))
    """
    # torch.compile cannot trace functions that have a forward mode, so they are used in that mode only.
    if forward_ad._current_level < 0:
        return function.apply(x, *args)  # type: ignore[no-any-return]
    fixed = x.detach()
    return _WithSlope.apply(x, function.forward(fixed, *args), function.slope(fixed, *args))  # type: ignore[no-any-return]


_OUTSIDE = -(2.0**-149), 1 + 2.0**-23
"""The largest float32 below 0, and the smallest above 1."""


class _Clip(ElementwiseFunction):
    """Forward: the clip to [0, 1]. Backward: 1 on [0, 1], both ends included, and 0 outside."""

    # Not torch.clamp: its gradient at the ends, where black and white pixels lie, depends on the version.
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        return ((x >= 0) & (x <= 1)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * ((x >= 0) & (x <= 1))


class _ClipWithSlope(ElementwiseFunction):
    """Forward: the clip to [0, 1]. Backward: the gradient times a slope, of the input's shape."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        return args[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


class _ClampMin(ElementwiseFunction):
    """Forward: the larger of input and bound. Backward: 1 from the bound on, including it, and 0 below."""

    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        return x.clamp_min(bound)

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        return (x >= args[0]).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bound = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * (x >= ctx.bound), None


def clamp_min(x: Tensor, bound: float) -> Tensor:
    """``x.clamp_min(bound)`` with gradient 1 at exactly the bound, where torch's depends on the version.

    Args:
        x: Any shape.
        bound: The least value of the result.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
        >>> torch.autograd.grad(clamp_min(x, 0).sum(), x)
        (tensor([0., 1., 1.]),)
    """
    return apply(_ClampMin, x, bound)


@dataclass(frozen=True)
class Clip:
    """The clip's own gradient, with which the networks are trained: 1 on [0, 1], both ends included, and 0 outside.

    Example:
        >>> x = torch.tensor([-1.0, 0.5, 1.0, 2.0], requires_grad=True)
        >>> torch.autograd.grad(Clip()(x).sum(), x)
        (tensor([0., 1., 1., 0.]),)
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Clip activations of any shape."""
        return apply(_Clip, x)

    def backward(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient where ``x`` is in [0, 1], else 0."""
        # torch's own rule excludes both ends, so that they are the next floats outside. One pass instead of four.
        return torch.ops.aten.hardtanh_backward(gradient, x, *_OUTSIDE)

    def __str__(self) -> str:
        return "clip"


@dataclass(frozen=True)
class Identity:
    """Gradient 1 everywhere: the straight-through estimator.

    Example:
        >>> x = torch.tensor([-1.0, 0.5, 1.0, 2.0], requires_grad=True)
        >>> torch.autograd.grad(Identity()(x).sum(), x)
        (tensor([1., 1., 1., 1.]),)
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Clip activations of any shape."""
        return apply(_ClipWithSlope, x, torch.ones_like(x))

    def backward(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient itself."""
        return gradient

    def __str__(self) -> str:
        return "identity"


@dataclass(frozen=True)
class Soft:
    """Gradient 1 on [0, 1], fading outside like the derivative of a sigmoid.

    At a distance ``d`` from [0, 1] it is ``4 s (1 - s)`` with ``s = sigmoid(d / width)``: 1 at the edge, 0.79 one width
    away and 0.42 two. Units near the edge of the flat part count, those far inside it hardly do.

    Args:
        width: Scale of the fading, in units of the activation, whose range is 1.

    Raises:
        InputError: If the width is not positive.

    Example:
        >>> x = torch.tensor([-1.0, 0.5, 1.0, 2.0], requires_grad=True)
        >>> torch.autograd.grad(Soft(1.0)(x).sum(), x)
        (tensor([0.7864, 1.0000, 1.0000, 0.7864]),)
    """

    width: float = 0.5

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise InputError(f"width must be above 0, got {self.width}")

    def __call__(self, x: Tensor) -> Tensor:
        """Clip activations of any shape."""
        return apply(_ClipWithSlope, x, self._slope(x.detach()))

    def backward(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient times the slope at ``x``."""
        return gradient * self._slope(x)

    def _slope(self, x: Tensor) -> Tensor:
        s = ((x - x.clamp(0, 1)).abs_() / self.width).sigmoid_()
        return 4 * s * (1 - s)

    def __str__(self) -> str:
        return "soft" if self == Soft() else f"soft:{self.width:g}"


as_trained = Clip()
identity = Identity()
soft = Soft()

_NAMED: Mapping[str, BackwardRule] = MappingProxyType({str(rule): rule for rule in (as_trained, identity, soft)})
_WITH_NUMBER: Mapping[str, Callable[[str], BackwardRule]] = MappingProxyType({"soft": lambda text: Soft(float(text))})


def parse_backward(text: str) -> BackwardRule:
    """Parse a rule's text form, as given by ``str``.

    Args:
        text: ``clip``, ``identity``, ``soft`` or ``soft:0.25``.

    Raises:
        InputError: If the text has another form.

    Example:
        >>> parse_backward("soft:0.25")
        Soft(width=0.25)
    """
    name, _, number = text.partition(":")
    try:
        return _WITH_NUMBER[name](number) if number else _NAMED[name]
    except (KeyError, ValueError) as error:
        forms = ", ".join([*_NAMED, "soft:0.25"])
        raise InputError(f"a backward rule is written as one of {forms}, got {text!r}") from error
