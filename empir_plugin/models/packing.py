"""Weight files: safetensors in which every quantized weight takes k bits; and strict loading of state dicts.

A quantized tensor ``name`` is stored as its codes 0 .. 2**k - 1, a little-endian bit stream in ``name`` (uint8), and
its scale in ``name.scale`` (one float32, or one per filter). All other tensors are stored unchanged. The header lists
the packed tensors, and the layers that do not quantize their input to [0, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from empir_plugin._files.tensor_files import (
    parse_json,
    read_metadata,
    read_tensors,
    read_weights,
    require_file,
    save_tensors,
    sha256,
)
from empir_plugin.errors import WeightsError
from empir_plugin.models.activations import InputQuantizer, SignActivationQuantizer, SignedActivationQuantizer
from empir_plugin.models.layers import QuantizedLayer, describe_kind, is_special, quantized_layers
from empir_plugin.models.quantize import FULL_BITS, ActivationQuantizer, WeightQuantizer
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer, UniformWeightQuantizer

_HEADER = "empir_packed"
_INPUTS = "empir_inputs"
_VARIANCE = "running_var"
LEARNED = "activation_bound"
"""Last part of the name of a learned range, which a full-precision checkpoint does not have."""

Shapes = Mapping[str, tuple[int, ...]]


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes, uint8 of any shape, into a little-endian bit stream of ``bits`` bits per code, 1-d uint8.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2)
        tensor([57], dtype=torch.uint8)
    """
    stream = ((codes.flatten().unsqueeze(1) >> torch.arange(bits, dtype=torch.uint8)) & 1).flatten()
    stream = nn.functional.pad(stream, (0, -len(stream) % 8)).view(-1, 8)
    return (stream << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(stream: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Unpack codes of a shape from a bit stream of :func:`pack`.

    Raises:
        WeightsError: If the stream has the wrong length for these codes, or a bit behind the last of them is set.

    Example:
        >>> unpack(torch.tensor([57], dtype=torch.uint8), 2, (2, 2))
        tensor([[1, 2],
                [3, 0]], dtype=torch.uint8)
    """
    count = math.prod(shape)
    if len(stream) != -(-count * bits // 8):
        raise WeightsError(f"{count} weights of {bits} bits take {-(-count * bits // 8)} bytes, found {len(stream)}")
    ones, padding = (
        ((stream.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1)
        .flatten()
        .split([count * bits, 8 * len(stream) - count * bits])
    )
    if bool(padding.any()):
        raise WeightsError(f"the bits behind {count} weights of {bits} bits must be 0: the stream is damaged")
    weighted = ones.view(-1, bits) << torch.arange(bits, dtype=torch.uint8)
    return weighted.sum(1, dtype=torch.uint8).view(shape)


def save_packed(model: nn.Module, path: Path) -> str:
    """Save a model's weights, the quantized ones packed, and return the file's SHA-256.

    Weights that a quantized layer shares with a layer of full precision, or of another quantizer, are stored as they
    are. The file is written atomically, so an interrupted run leaves no partial file.

    Raises:
        WeightsError: If the file cannot be written, or something in the state dict is no plain tensor; an existing file
            is then left unchanged.
    """
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor) or is_special(value):
            kind = describe_kind(value) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise WeightsError(f"{path} would have to hold {key!r}, {kind}: dequantize the model, or save it yourself")
    packed = _packable(model)
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        layer = packed.get(key)
        tensors |= {key: value} if layer is None else _pack_layer(key, layer)
    metadata = {_HEADER: json.dumps(_description(packed), sort_keys=True)} | _inputs_metadata(model)
    try:
        save_tensors(path, _in_memory_of_their_own(tensors), metadata)
    except OSError as error:
        reason = error.strerror or error
        raise WeightsError(f"{path} cannot be written ({reason}): free some space, or choose another folder") from error
    return sha256(path)


def load_packed(model: nn.Module, path: Path, *, expected_sha256: str | None = None) -> None:
    """Load a file of :func:`save_packed` into a model of the same architecture and precision.

    Quantized layers are baked with exactly the saved weights. Their latent weights are new ones that quantize to these,
    since packing keeps only the codes. Which inputs are signed is read from the file.

    Raises:
        WeightsError: If the file is missing, damaged, not of this format, or made for another model; the model is then
            left unchanged.
    """
    require_file(path)
    if expected_sha256 is not None and sha256(path) != expected_sha256:
        reason = "its SHA-256 is not that of the model card or report"
        raise WeightsError(f"{path} is damaged or not the published file: {reason}")
    tensors, described, inputs = _read(path)
    layers = _packable(model)
    _check_packed(path, tensors, described, layers)
    quantizers = {name: _input_quantizer(path, name, layer, inputs) for name, layer in quantized_layers(model)}
    baked = {key: _decode(layer.weight_quantizer, tensors, key, layer) for key, layer in layers.items()}
    latent = {key: latent_weights(layers[key].weight_quantizer, weight) for key, weight in baked.items()}
    state = {key: value for key, value in tensors.items() if not _belongs_to_packed(key, layers)} | latent
    load_strictly(model, state, path)
    for key, layer in layers.items():
        layer.baked_weight = baked[key].to(layer.weight.device)
    for name, layer in quantized_layers(model):
        layer.activation_quantizer = quantizers[name]


def is_packed(path: Path) -> bool:
    """Whether a safetensors file is of the packed format, or else a plain state dict.

    Raises:
        WeightsError: If the file is missing or not a safetensors file.
    """
    require_file(path)
    return _HEADER in _metadata(path)


def packed_names(path: Path) -> tuple[str, ...]:
    """Names of the weights that a packed file stores as codes; none for a full-precision network.

    Raises:
        WeightsError: If the file is not of the packed format.
    """
    described = _read(path)[1]
    return tuple(described) if isinstance(described, Mapping) else ()


def _packable(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers whose weights are stored as codes, by the names of these weights in the state dict.

    A shared layer is listed under each of its names.
    """
    named = model.named_modules(remove_duplicate=False)
    layers = {f"{name}.weight".removeprefix("."): x for name, x in named if isinstance(x, QuantizedLayer)}
    quantized = {key: layer for key, layer in layers.items() if layer.precision.weight_bits < FULL_BITS}
    needed = _latent_weights_in_use(model, quantized)
    return {key: layer for key, layer in quantized.items() if key not in needed}


def _latent_weights_in_use(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> set[str]:
    """The quantized weights whose latent values something else in the state dict depends on, since it shares them."""
    return {
        key
        for group in _by_storage(model).values()
        for key, value in group
        if key in layers and not all(_is_packed_alike(layers, key, value, *other) for other in group)
    }


def _by_storage(model: nn.Module) -> dict[int, list[tuple[str, Tensor]]]:
    """The plain tensors of a model's state dict with their names, by the memory they lie in."""
    found: dict[int, list[tuple[str, Tensor]]] = {}
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor) and not is_special(value) and value.numel() and not value.is_meta:
            found.setdefault(value.untyped_storage().data_ptr(), []).append((key, value))
    return found


def _is_packed_alike(
    layers: Mapping[str, QuantizedLayer], key: str, value: Tensor, other_key: str, other: Tensor
) -> bool:
    """Whether two tensors of one storage do not overlap, or are the same and quantized in the same way."""
    first, second = _span(value), _span(other)
    if first[0] >= second[1] or second[0] >= first[1]:
        return True
    rules = [layers[each].weight_quantizer if each in layers else None for each in (key, other_key)]
    return rules[0] == rules[1] and _view(value) == _view(other)


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first element of a tensor in its storage, and the one behind its last."""
    start = int(tensor.storage_offset())
    reach = sum((size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + reach + 1


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


def _in_memory_of_their_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two of which share memory, as safetensors requires; equal ones once."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    once = {_view(value) if value.numel() else key: (key, value) for key, value in reversed([*tensors.items()])}
    for key, value in once.values():
        own = value.detach().cpu().contiguous()
        address = own.untyped_storage().data_ptr()
        result[key] = own.clone() if address in seen else own
        seen.add(address)
    return result


def _description(layers: Mapping[str, QuantizedLayer]) -> dict[str, object]:
    """The header's description of the packed tensors."""
    return {key: _describe(layer) for key, layer in layers.items()}


def _describe(layer: QuantizedLayer) -> dict[str, object]:
    description: dict[str, object] = {"bits": layer.precision.weight_bits, "shape": list(layer.weight.shape)}
    rule = layer.weight_quantizer
    return description if isinstance(rule, WeightQuantizer) else description | {"rule": str(rule)}


_INPUT_QUANTIZERS: Mapping[str, Callable[[int], InputQuantizer]] = MappingProxyType(
    {
        "unsigned": ActivationQuantizer,
        "signed": SignedActivationQuantizer,
        "sign": lambda bits: SignActivationQuantizer(),
    }
)


def _inputs_metadata(model: nn.Module) -> dict[str, str]:
    """The header's description of inputs that are not quantized to [0, 1]; no header if there are none."""
    rules = {name: layer.activation_quantizer for name, layer in quantized_layers(model)}
    other = {name: str(rule) for name, rule in rules.items() if not isinstance(rule, ActivationQuantizer)}
    return {_INPUTS: json.dumps(other, sort_keys=True)} if other else {}


def _input_quantizer(path: Path, name: str, layer: QuantizedLayer, inputs: object) -> InputQuantizer:
    """The quantizer of a layer's input according to the file."""
    rule = str(inputs.get(name, "unsigned")) if isinstance(inputs, Mapping) else "nothing"
    bits = layer.activation_quantizer.bits
    if rule not in _INPUT_QUANTIZERS or (rule == "sign" and bits != 1):
        raise WeightsError(f"{path} is damaged or newer than this package: input of {name!r} is quantized as {rule!r}")
    return _INPUT_QUANTIZERS[rule](bits)


def _pack_layer(key: str, layer: QuantizedLayer) -> dict[str, Tensor]:
    # In the weights' own layout and on their device: otherwise the last bit of a mean can differ.
    quantizer, latent = layer.weight_quantizer, layer.weight.detach()
    codes = pack(quantizer.codes(latent).cpu(), quantizer.bits)
    return {key: codes, f"{key}.scale": quantizer.factor(latent)}


def _belongs_to_packed(key: str, layers: Mapping[str, QuantizedLayer]) -> bool:
    return key.removesuffix(".scale") in layers


def _metadata(path: Path) -> dict[str, str]:
    return read_weights(path, read_metadata)


def _read(path: Path) -> tuple[dict[str, Tensor], object, object]:
    """Tensors, and the header's descriptions of the packed tensors and of the inputs."""
    tensors, metadata = read_weights(path, read_tensors)
    if _HEADER not in metadata:
        raise WeightsError(f"{path} holds plain weights, not packed ones: load it with load_state_dict")
    try:
        return tensors, parse_json(metadata[_HEADER]), parse_json(metadata.get(_INPUTS, "{}"))
    except ValueError as error:
        raise WeightsError(
            f"{path} is damaged: its description of packed tensors is not JSON ({error}), so get it again"
        ) from error


def _check_packed(
    path: Path, tensors: Mapping[str, Tensor], described: object, layers: Mapping[str, QuantizedLayer]
) -> None:
    if described != _description(layers):
        raise WeightsError(f"{path} was made for another architecture or precision: it packs {described}")
    for key, layer in layers.items():
        codes, scale = tensors.get(key), tensors.get(f"{key}.scale")
        if codes is None or scale is None or (codes.dtype, scale.dtype) != (torch.uint8, torch.float32):
            raise WeightsError(f"{path} is damaged: {key!r} is not a stream of codes with a scale")
        if codes.dim() != 1 or scale.shape != layer.weight_quantizer.factor(layer.weight).shape:
            raise WeightsError(f"{path} is damaged: {key!r} is not a stream of codes with a scale")
        if not bool(((scale >= 0) & scale.isfinite()).all()):
            raise WeightsError(f"{path} is damaged: the scale of {key!r} is negative or not finite: get it again")
        if _is_unscaled(layer.weight_quantizer) and bool(scale != 1):
            cure = "build the network with the scale its weights were trained with, such as 'max'"
            raise WeightsError(f"{path} scales {key!r} by {scale.item():.4g}, got a layer of scale 'none': {cure}")


def _is_unscaled(rule: AnyWeightQuantizer) -> bool:
    """Whether a quantizer ignores the scale in a file."""
    return isinstance(rule, WeightQuantizer) and rule.scale == "none" and rule.bits > 1


def _decode(quantizer: AnyWeightQuantizer, tensors: Mapping[str, Tensor], key: str, layer: QuantizedLayer) -> Tensor:
    codes = unpack(tensors[key], quantizer.bits, tuple(layer.weight.shape))
    if isinstance(quantizer, UniformWeightQuantizer) and bool((codes > 2 * quantizer.steps).any()):
        raise WeightsError(f"{key!r} is damaged: a code is above {2 * quantizer.steps}, the last of {quantizer}")
    return quantizer.decode(codes, tensors[f"{key}.scale"])


def latent_weights(quantizer: AnyWeightQuantizer, weight: Tensor) -> Tensor:
    """Latent weights that quantize to ``weight``: with exactly the same codes, and the same scale up to rounding."""
    if not isinstance(quantizer, WeightQuantizer) or quantizer.bits == 1:
        return weight.clone()
    largest = weight.abs().max()
    tiny = torch.finfo(weight.dtype).tiny
    if largest < (1 if quantizer.scale == "none" else tiny):
        return weight * tiny  # the latent weights were all zero; the quantizer bounds their maximum by this number
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


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Load a state dict into a model; ``path`` is its file, for the error message.

    Learned ranges of activations may be missing, as in a full-precision checkpoint; the model's own are then kept. Of
    weights that the model shares under several names, one name is enough.

    Raises:
        WeightsError: If a name, a shape or the kind of numbers differs, a number is not finite in the model's type, or
            a variance is negative; the model is then left unchanged.
    """
    check_types(model, state, str(path))
    _check_values(model, state, path)
    _check_shared(model, state, path)
    state = {**_shared_weights(model, state), **state}
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    needed = {key: shape for key, shape in own.items() if key in found or key.rpartition(".")[2] != LEARNED}
    if needed != found:
        differing = sorted(dict(needed.items() ^ found.items()))[0]
        details = _difference(needed, found)
        raise WeightsError(f"{path} was made for another architecture: it differs in {differing!r} ({details})")
    model.load_state_dict(dict(state))


def check_types(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Check that a state dict has floating-point numbers where a model has them, and whole numbers elsewhere.

    Loading would convert codes to floats, without their scale.

    Args:
        model: The model to be loaded.
        state: Tensors by name; other names than the model's are ignored.
        source: Where the state dict is from, for the error message.

    Raises:
        WeightsError: If a type differs in kind.
    """
    for key, own in model.state_dict().items():
        found = state.get(key)
        if isinstance(own, Tensor) and isinstance(found, Tensor) and not _is_of_kind(found, own):
            reason = (
                "a complex number is no real one, so pass a checkpoint of real weights"
                if found.is_complex()
                else "codes of a quantized file are no weights without their scale, so pass a checkpoint of "
                "floating-point weights, or a packed file of this package"
            )
            raise WeightsError(f"{source} has {key!r} as {found.dtype}, the model as {own.dtype}: {reason}")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_of_kind(found: Tensor, own: Tensor) -> bool:
    if own.is_floating_point():
        return found.dtype in _FLOATS
    if own.is_complex() or found.is_complex():
        return own.is_complex() and found.is_complex()
    # An average over training keeps counts, such as those of batches, as floats.
    return not found.is_floating_point() or bool((found == found.float().round()).all())


def _check_values(model: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    for key, own in model.state_dict().items():
        found = state.get(key)
        if not isinstance(own, Tensor) or not isinstance(found, Tensor) or is_special(found):
            continue
        if not bool(found.to(own.dtype).isfinite().all()):
            raise WeightsError(f"{path} is damaged: {key!r} has values that are not finite: use another checkpoint")
        if key.rpartition(".")[2] == _VARIANCE and bool((found < 0).any()):
            raise WeightsError(f"{path} is damaged: {key!r} has a negative variance: use another checkpoint")


def _shared_weights(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that a state dict lacks and has under another name, because the model shares them."""
    tensors = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    own = {key: value for key, value in tensors.items() if value.numel() and not value.is_meta}
    found = {_view(own[key]): value for key, value in state.items() if key in own}
    return {key: found[_view(value)] for key, value in own.items() if key not in state and _view(value) in found}


@torch.no_grad()
def _check_shared(model: nn.Module, state: Mapping[str, Tensor], path: Path | str) -> None:
    """Check that a state dict has the same numbers wherever weights of a model share memory.

    Raises:
        WeightsError: If two of them differ there; loading would keep the last one.
    """
    for group in _by_storage(model).values():
        named = [(key, own) for key, own in group if key in state and state[key].shape == own.shape]
        if len(named) < 2:
            continue
        _, first = named[0]
        memory = torch.zeros(first.untyped_storage().nbytes() // first.itemsize, dtype=first.dtype)
        written = {key: memory.as_strided(own.shape, own.stride(), own.storage_offset()) for key, own in named}
        for key, here in written.items():
            here.copy_(state[key])
        overwritten = [key for key, here in written.items() if not torch.equal(here, state[key].to(here))]
        if overwritten:
            others = ", ".join(repr(key) for key, _ in named if key != overwritten[0])
            raise WeightsError(
                f"{path} has other numbers for {overwritten[0]!r} than for {others}, with which it shares memory in "
                "this model: load it into a model in which they are separate, or make them equal first"
            )


def _difference(own: Shapes, found: Shapes) -> str:
    kinds = {
        "it lacks": [key for key in own if key not in found],
        "it has besides": [key for key in found if key not in own],
        "of another shape are": [
            f"{key} {found[key]} instead of {shape}" for key, shape in own.items() if found.get(key, shape) != shape
        ],
    }
    return "; ".join(f"{what} {_first(keys)}" for what, keys in kinds.items() if keys)


def _first(keys: list[str], shown: int = 5) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(sorted(keys)[:shown]) + more
