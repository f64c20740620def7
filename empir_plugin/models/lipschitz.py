"""Lipschitz constants of quantization errors: norms of each layer's latent weights minus the quantized ones.

Source: Song et al., "Improving adversarial robustness in weight-quantized neural networks",
https://arxiv.org/abs/2012.14965: a layer amplifies perturbations if its norm exceeds 1. The paper uses the norm of the
weights as a matrix (Cisse et al., "Parseval networks", https://arxiv.org/abs/1704.08847). A convolution with its stride
and padding is another matrix, so both norms are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.layers import QuantizedLayer, input_of_call, quantized_layers
from empir_plugin.models.quantize import FULL_BITS

LinearMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ErrorNorms:
    """Lipschitz constants of the map from a layer's input to its quantization error.

    Args:
        spectral: For L2 norms: the largest singular value of the map, at the layer's input size.
        infinity: For Linf norms: the largest sum of absolute values in a row. An upper bound where a convolution pads
            with other values than zero.
        flattened: Largest singular value of the weights as a matrix of ``(out, in * height * width)``.
    """

    spectral: float
    infinity: float
    flattened: float


def quantization_error_norms(model: nn.Module, images: Tensor) -> dict[str, ErrorNorms]:
    """Norms of ``W - Q(W)`` for every layer with quantized weights, by name.

    Without a scale (see :class:`~empir_plugin.models.quantize.WeightQuantizer`) the error includes the change of size.
    For a weight-standardised convolution it is the error before the standardisation. Layers that never run are omitted,
    and so are layers whose latent weights were dropped by packing.

    Args:
        model: In evaluation mode.
        images: ``(N, C, H, W)``, on the model's device; only their size matters.

    Raises:
        InputError: If a weight is not finite.

    Example:
        >>> from empir_plugin.models.layers import QuantConv2d
        >>> from empir_plugin.models.quantize import Precision
        >>> layer = QuantConv2d(1, 1, 1, bias=False, precision=Precision.parse("w2"))
        >>> _ = layer.load_state_dict({"weight": torch.full((1, 1, 1, 1), 0.75)})
        >>> norms = quantization_error_norms(nn.Sequential(layer).eval(), torch.zeros(1, 1, 4, 4))
        >>> round(norms["0"].spectral, 6)
        0.25
    """
    shapes = _shapes(model, images)
    found = {name: layer for name, layer in quantized_layers(model) if name in shapes}
    return {name: error_norms(layer, *shapes[name]) for name, layer in found.items() if _has_error(layer)}


def error_norms(layer: QuantizedLayer, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> ErrorNorms:
    """Norms of ``W - Q(W)`` for one layer.

    Args:
        layer: A convolution or linear layer.
        input_shape: Shape of its input, including the batch dimension, whose size does not matter.
        output_shape: Shape of its output, likewise.

    Raises:
        InputError: If a weight is not finite.
    """
    error = (layer.weight - layer.quantized_weight()).detach().double().cpu()
    if not error.isfinite().all():
        raise InputError("weights must be finite numbers to have an error: train the network again, or load others")
    flattened = matrix_norm(error.flatten(1))
    if isinstance(layer, nn.Linear):
        return ErrorNorms(flattened, error.abs().sum(1).max().item(), flattened)
    extra, one = _missing_padding(layer, input_shape, output_shape), (1, *input_shape[1:])
    spectral = spectral_norm(_convolution(layer, error, extra), one)
    rows = _convolution(layer, error.abs(), extra)(torch.ones(one, dtype=torch.float64))
    return ErrorNorms(spectral, rows.max().item(), flattened)


def matrix_norm(matrix: Tensor) -> float:
    """Largest singular value of a matrix, through the smaller of its two Gram matrices.

    Example:
        >>> round(matrix_norm(torch.tensor([[3.0, 0.0], [4.0, 0.0]])), 6)
        5.0
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return torch.linalg.eigvalsh((tall.T @ tall).double())[-1].clamp_min(0).sqrt().item()


def spectral_norm(
    operator: LinearMap, shape: tuple[int, ...], *, iterations: int = 200, tolerance: float = 1e-9
) -> float:
    """Largest singular value of a linear map A that is given as a function.

    Lanczos iteration on the transpose of A times A. It keeps the whole Krylov space, unlike power iteration, since a
    convolution has many singular values near the largest. The result approaches the true value from below.

    Args:
        operator: A, differentiable, on float64 tensors.
        shape: Shape of its input.
        iterations: Maximum number of applications of A and its transpose.
        tolerance: Stop when the relative growth of the estimate is below this.

    Example:
        >>> round(spectral_norm(lambda x: torch.tensor([3.0, -1.0]).double() * x, (2,)), 6)
        3.0
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(shape, generator=generator, dtype=torch.float64)
    vector, previous = vector / vector.norm(), torch.zeros_like(vector)
    diagonal: list[float] = []
    off_diagonal: list[float] = [0.0]
    estimate = 0.0
    for _ in range(iterations):
        image = _gram(operator, vector)
        diagonal.append((image * vector).sum().item())
        image = image - diagonal[-1] * vector - off_diagonal[-1] * previous
        before, estimate = estimate, _largest_eigenvalue(diagonal, off_diagonal[1:])
        off_diagonal.append(image.norm().item())
        if estimate - before <= tolerance * estimate or off_diagonal[-1] <= tolerance * estimate:
            break
        previous, vector = vector, image / off_diagonal[-1]
    return max(estimate, 0.0) ** 0.5


def _gram(operator: LinearMap, vector: Tensor) -> Tensor:
    """The transpose of A times A times a vector."""
    with torch.enable_grad():
        leaf = vector.detach().requires_grad_(True)
        image = operator(leaf)
        (result,) = torch.autograd.grad(image, leaf, image.detach())
    return result


def _largest_eigenvalue(diagonal: list[float], off_diagonal: list[float]) -> float:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    index = torch.arange(len(off_diagonal))
    matrix[index + 1, index] = torch.tensor(off_diagonal, dtype=torch.float64)  # eigvalsh reads the lower triangle
    return torch.linalg.eigvalsh(matrix)[-1].item()


def _has_error(layer: QuantizedLayer) -> bool:
    """Whether a layer has quantized weights, and the latent ones the network was trained with.

    Packed files keep only the codes. The latent weights after loading take as many values as there are levels, or are
    the quantized weights; they do not show the error.
    """
    bits, weight = layer.precision.weight_bits, layer.weight.detach()
    if bits == FULL_BITS or torch.allclose(weight, layer.quantized_weight(), atol=0):
        return False
    return weight.numel() <= 2**bits or len(weight.unique()) > 2**bits


def _shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Input and output shapes of every quantized layer, at its last call."""
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            shapes[name] = tuple(input_of_call(args, kwargs).shape), tuple(output.shape)

        return layer.register_forward_hook(note, with_kwargs=True)

    handles = [watch(name, layer) for name, layer in quantized_layers(model)]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _convolution(layer: Any, weight: Tensor, extra: list[int]) -> LinearMap:
    return lambda x: layer._conv_forward(nn.functional.pad(x, extra), weight, None)


def _missing_padding(layer: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> list[int]:
    """Zeros that a layer adds to its own padding: before and after the last dimension, then the one before it.

    Layers with TensorFlow's SAME padding pad according to the size of their input, the odd pixel at the end.
    """
    extra: list[int] = []
    for dim in reversed(range(len(layer.kernel_size))):
        own = 0 if isinstance(layer.padding, str) else layer.padding[dim]
        reach = (output_shape[dim + 2] - 1) * layer.stride[dim] + layer.dilation[dim] * (layer.kernel_size[dim] - 1) + 1
        missing = 0 if isinstance(layer.padding, str) else max(0, reach - input_shape[dim + 2] - 2 * own)
        extra += [missing // 2, missing - missing // 2]
    return extra
