"""Weight files: safetensors in which every quantized weight takes its own k bits and nothing more.

A quantized tensor ``name`` is stored as its codes 0 .. 2**k - 1, a little-endian bit stream in ``name`` (uint8), and
its scale in ``name.scale`` (one float32). Everything else is stored as it is. The header says which tensors are packed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from empir_plugin.errors import WeightsError
from empir_plugin.models.layers import QuantizedLayer, quantized_layers
from empir_plugin.models.precision import FULL_BITS
from empir_plugin.models.quantize import WeightQuantizer

_HEADER = "empir_packed"


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of ``bits`` bits each, any shape, uint8, as a little-endian bit stream: 1-d uint8.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2)
        tensor([57], dtype=torch.uint8)
    """
    stream = ((codes.flatten().unsqueeze(1) >> torch.arange(bits, dtype=torch.uint8)) & 1).flatten()
    stream = nn.functional.pad(stream, (0, -len(stream) % 8)).view(-1, 8)
    return (stream << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(stream: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes of ``shape`` that :func:`pack` packed.

    Raises:
        WeightsError: If the stream has another length than such codes need.

    Example:
        >>> unpack(torch.tensor([57], dtype=torch.uint8), 2, (2, 2))
        tensor([[1, 2],
                [3, 0]], dtype=torch.uint8)
    """
    count = math.prod(shape)
    if len(stream) != -(-count * bits // 8):
        raise WeightsError(f"{count} weights of {bits} bits take {-(-count * bits // 8)} bytes, found {len(stream)}")
    ones = ((stream.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: count * bits]
    weighted = ones.view(-1, bits) << torch.arange(bits, dtype=torch.uint8)
    return weighted.sum(1, dtype=torch.uint8).view(shape)


def save_packed(model: nn.Module, path: Path) -> str:
    """Write a model's weights, the quantized ones packed, and return the file's SHA-256.

    The file is written aside and then put in place, so that a kill leaves no half of one.

    Raises:
        WeightsError: If the file cannot be written; one that was there before is then left as it was.
    """
    packed = _packable(model)
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        layer = packed.get(key)
        tensors |= {key: value} if layer is None else _packed_tensors(key, layer)
    partial = path.with_suffix(".partial")
    metadata = {_HEADER: json.dumps(_description(packed), sort_keys=True)}
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return sha256(path)


def load_packed(model: nn.Module, path: Path, *, expected_sha256: str | None = None) -> None:
    """Load what :func:`save_packed` wrote into a model of the same architecture and precision.

    Quantized layers come out baked with exactly the weights that were saved. Their latent weights are some that
    quantize to these: what the packing dropped is gone.

    Raises:
        WeightsError: If the file is missing, damaged, not of this format, or made for another model; the model is then
            left as it was.
    """
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    if expected_sha256 is not None and sha256(path) != expected_sha256:
        raise WeightsError(f"{path} is damaged or not the published file: its SHA-256 differs from the model card's")
    tensors, described = _read(path)
    layers = _packable(model)
    _check_packed(path, tensors, described, layers)
    baked = {key: _decode(layer.weight_quantizer, tensors, key, layer) for key, layer in layers.items()}
    latent = {key: _latent(layers[key].weight_quantizer, weight) for key, weight in baked.items()}
    state = {key: value for key, value in tensors.items() if not _belongs_to_packed(key, layers)} | latent
    load_strictly(model, state, path)
    for key, layer in layers.items():
        layer.baked_weight = baked[key].to(layer.weight.device)


def is_packed(path: Path) -> bool:
    """Whether a file is of the packed format; a plain safetensors state dict is not.

    Raises:
        WeightsError: If the file is missing or no safetensors at all.
    """
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    return _HEADER in _metadata(path)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into a model; ``path`` is where it came from, for the error.

    Raises:
        WeightsError: If a name or a shape differs; the model is then left as it was.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if own != found:
        differing = sorted(dict(own.items() ^ found.items()))[0]
        raise WeightsError(f"{path} was made for another architecture: it differs in {differing!r}")
    model.load_state_dict(dict(state))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _packable(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers with quantized weights, by the names of these weights in the state dict."""
    found = {f"{name}.weight".removeprefix("."): layer for name, layer in quantized_layers(model)}
    return {key: layer for key, layer in found.items() if layer.precision.weight_bits < FULL_BITS}


def _description(layers: Mapping[str, QuantizedLayer]) -> dict[str, object]:
    """What the header says of packed tensors."""
    return {
        key: {"bits": layer.precision.weight_bits, "shape": list(layer.weight.shape)} for key, layer in layers.items()
    }


def _packed_tensors(key: str, layer: QuantizedLayer) -> dict[str, Tensor]:
    # Where and as the weights lie: a mean over another layout or on another device can differ in its last bit.
    quantizer, latent = layer.weight_quantizer, layer.weight.detach()
    codes = pack(quantizer.codes(latent).cpu(), quantizer.bits)
    return {key: codes, f"{key}.scale": quantizer.factor(latent)}


def _belongs_to_packed(key: str, layers: Mapping[str, QuantizedLayer]) -> bool:
    return key.removesuffix(".scale") in layers


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or no safetensors file ({error}): get it again") from error


def _read(path: Path) -> tuple[dict[str, Tensor], object]:
    metadata = _metadata(path)
    if _HEADER not in metadata:
        raise WeightsError(f"{path} holds plain weights, not packed ones: load it with load_state_dict")
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    try:
        return tensors, json.loads(metadata[_HEADER])
    except ValueError as error:
        raise WeightsError(f"{path} is damaged: what it packs is not described in JSON") from error


def _check_packed(
    path: Path, tensors: Mapping[str, Tensor], described: object, layers: Mapping[str, QuantizedLayer]
) -> None:
    if described != _description(layers):
        raise WeightsError(f"{path} was made for another architecture or precision: it packs {described}")
    for key in layers:
        codes, scale = tensors.get(key), tensors.get(f"{key}.scale")
        if codes is None or scale is None or codes.dtype != torch.uint8 or codes.dim() != 1 or scale.dim() != 0:
            raise WeightsError(f"{path} is damaged: {key!r} is not a stream of codes with a scale")


def _decode(quantizer: WeightQuantizer, tensors: Mapping[str, Tensor], key: str, layer: QuantizedLayer) -> Tensor:
    codes = unpack(tensors[key], quantizer.bits, tuple(layer.weight.shape))
    return quantizer.decode(codes, tensors[f"{key}.scale"])


def _latent(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """Latent weights that quantize to ``weight``: to the same codes exactly, to the same scale up to rounding."""
    if quantizer.bits == 1:
        return weight.clone()
    largest = weight.abs().max()
    tiny = torch.finfo(weight.dtype).tiny
    if largest < (1 if quantizer.scale == "none" else tiny):
        return weight * tiny  # so does a layer of zeros come out, whose maximum the quantizer bounds by this number
    levels = (weight / largest).double()
    # tanh undoes atanh, and the division by the maximum undoes the amplitude.
    return (levels * _AMPLITUDES[quantizer.scale](levels, largest.double())).atanh().float()


def _amplitude_of_mean(levels: Tensor, mean: Tensor) -> Tensor:
    """The amplitude ``m`` for which ``mean|atanh(m * levels)|`` is ``mean``, by bisection."""
    low, high = torch.zeros_like(mean), torch.ones_like(mean)
    for _ in range(60):
        middle = (low + high) / 2
        too_small = (levels * middle).atanh().abs().mean() < mean
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return low


_AMPLITUDES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "none": lambda levels, largest: largest.new_tensor(math.tanh(1.0)),
        "max": lambda levels, largest: largest.clamp_max(1 - 1e-7),
        "mean": _amplitude_of_mean,
    }
)
