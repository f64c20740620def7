"""Weight files: k bits per weight, equal outputs after loading, and an unchanged model if loading fails."""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from empir_plugin._files import atomic, tensor_files
from empir_plugin._files.tensor_files import sha256
from empir_plugin.errors import WeightsError
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantConv2d, QuantLinear, quantized_layers
from empir_plugin.models.packing import is_packed, load_packed, load_strictly, pack, save_packed, unpack
from empir_plugin.models.quantize import Precision, Scale

SCALES: tuple[Scale, ...] = ("none", "max", "mean")
TEXTS = [*(f"w{bits}a4" for bits in range(1, 9)), "w2a32", "w32a4", "fp"]
X = torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def network(text: str = "w3a4", *, scale: Scale = "none", seed: int = 0) -> nn.Sequential:
    """Odd sizes, a bias, a normalisation with statistics and a layer in full precision."""
    torch.manual_seed(seed)
    precision = Precision.parse(text)
    model = nn.Sequential(
        QuantConv2d(2, 3, 3, bias=False, precision=precision, scale=scale),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        QuantLinear(27, 5, precision=precision, scale=scale),
        nn.Linear(5, 3),
    )
    model(X)
    return model.eval()


def fingerprint(model: nn.Module) -> list[Tensor]:
    """Copies of everything a model computes with."""
    baked = [layer.quantized_weight() for _, layer in quantized_layers(model)]
    return [value.detach().clone() for value in [*model.state_dict().values(), *baked, model(X)]]


def assert_unchanged(model: nn.Module, before: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(fingerprint(model), before, strict=True))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


# -- Bits


@pytest.mark.parametrize(
    ("codes", "bits", "stream"),
    [
        pytest.param([1, 0, 0, 0, 0, 0, 0, 1, 1], 1, [0b10000001, 0b1], id="1-bit-lowest-first"),
        pytest.param([1, 2, 3, 0], 2, [0b00_11_10_01], id="2-bit"),
        pytest.param([7, 0, 5], 3, [0b01_000_111, 0b1], id="3-bit-across-bytes"),
        pytest.param([0x1, 0x2, 0x3], 4, [0x21, 0x03], id="4-bit-half-a-byte-left"),
        pytest.param([0, 255, 7], 8, [0, 255, 7], id="8-bit"),
        pytest.param([], 3, [], id="none"),
    ],
)
def test_streams_by_hand(codes: list[int], bits: int, stream: list[int]) -> None:
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == stream
    assert unpack(torch.tensor(stream, dtype=torch.uint8), bits, (len(codes),)).tolist() == codes


@settings(deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**32))
def test_packing_loses_nothing(bits: int, shape: list[int], seed: int) -> None:
    codes = torch.randint(2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    stream = pack(codes, bits)
    assert len(stream) == math.ceil(codes.numel() * bits / 8)
    assert torch.equal(unpack(stream, bits, tuple(shape)), codes)


def test_codes_are_packed_in_logical_order() -> None:
    codes = torch.arange(24, dtype=torch.uint8).view(1, 4, 2, 3)
    assert torch.equal(pack(codes.to(memory_format=torch.channels_last), 5), pack(codes, 5))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_stream_of_another_length(length: int) -> None:
    with pytest.raises(WeightsError, match=rf"5 weights of 3 bits.*{length}"):
        unpack(torch.zeros(length, dtype=torch.uint8), 3, (5,))


# -- Round trip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_loaded_model_computes_the_same_bit_for_bit(text: str, scale: Scale, file: Path) -> None:
    saved, loaded = network(text, scale=scale), network(text, scale=scale, seed=1)
    assert not torch.equal(loaded(X), saved(X))
    assert save_packed(saved, file) == sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    load_packed(loaded, file)
    assert torch.equal(loaded(X), saved(X))
    for (_, ours), (_, theirs) in zip(quantized_layers(loaded), quantized_layers(saved), strict=True):
        assert torch.equal(ours.quantized_weight(), theirs.quantized_weight())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_latent_weights_after_loading_quantize_to_the_same_codes(text: str, scale: Scale, file: Path) -> None:
    saved, loaded = network(text, scale=scale), network(text, scale=scale, seed=1)
    save_packed(saved, file)
    load_packed(loaded, file)
    loaded.train()
    for (_, ours), (_, theirs) in zip(quantized_layers(loaded), quantized_layers(saved), strict=True):
        quantizer = ours.weight_quantizer
        if quantizer.bits < 32:
            assert ours.baked_weight is None
            assert torch.equal(quantizer.codes(ours.weight), quantizer.codes(theirs.weight))
        torch.testing.assert_close(ours.quantized_weight(), theirs.quantized_weight(), rtol=1e-5, atol=0)
        if scale == "none" and quantizer.bits > 1:
            assert torch.equal(ours.quantized_weight(), theirs.quantized_weight())


@pytest.mark.parametrize("scale", SCALES)
def test_large_weights_survive(scale: Scale, file: Path) -> None:
    saved, loaded = network("w4a4", scale=scale), network("w4a4", scale=scale, seed=1)
    with torch.no_grad():
        for _, layer in quantized_layers(saved):
            layer.weight *= 30
    save_packed(saved, file)
    load_packed(loaded, file)
    assert torch.equal(loaded(X), saved(X))
    for (_, ours), (_, theirs) in zip(quantized_layers(loaded), quantized_layers(saved), strict=True):
        assert torch.equal(ours.weight_quantizer.codes(ours.weight), theirs.weight_quantizer.codes(theirs.weight))
        assert ours.weight.isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", ["w1a4", "w2a4", "w3a4"])
def test_a_layer_of_zeros_survives(text: str, scale: Scale, file: Path) -> None:
    saved, loaded = network(text, scale=scale), network(text, scale=scale, seed=1)
    nn.init.zeros_(saved.get_parameter("4.weight"))
    save_packed(saved, file)
    load_packed(loaded, file)
    assert torch.equal(loaded(X), saved(X))
    layers = dict(quantized_layers(loaded.train()))
    assert layers["4"].weight.isfinite().all()
    assert torch.equal(layers["4"].quantized_weight(), dict(quantized_layers(saved))["4"].quantized_weight())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", ["w1a4", "w2a4"])
def test_a_channels_last_model_survives(text: str, scale: Scale, file: Path) -> None:
    """A mean over another memory layout can differ in its last bit."""
    for seed in range(8):
        torch.manual_seed(seed)
        saved = QuantConv2d(17, 32, 5, precision=Precision.parse(text), scale=scale)
        loaded = QuantConv2d(17, 32, 5, precision=Precision.parse(text), scale=scale)
        saved.to(memory_format=torch.channels_last)
        save_packed(saved, file)
        load_packed(loaded.eval(), file)
        assert torch.equal(loaded.quantized_weight(), saved.quantized_weight())


def test_a_network_that_was_never_put_into_evaluation_mode_trains_on(file: Path) -> None:
    """A network is in training mode when it is built, and loading bakes its weights for evaluation."""
    save_packed(network("w2a4", scale="max"), file)
    loaded = network("w2a4", scale="max", seed=1).train()
    load_packed(loaded, file)
    loaded(X).square().sum().backward()
    gradients = {name: layer.weight.grad for name, layer in quantized_layers(loaded)}
    assert all(gradient is not None and gradient.any() for gradient in gradients.values()), gradients


@pytest.mark.parametrize("scale", ["max", "mean"])
def test_scaled_weights_do_not_load_into_layers_without_a_scale(scale: Scale, file: Path) -> None:
    save_packed(network("w2a4", scale=scale), file)
    wrong, before = network("w2a4", seed=1), fingerprint(network("w2a4", seed=1))
    with pytest.raises(WeightsError, match=r"'0.weight' by 0\.\d+.*'none'.*build the network"):
        load_packed(wrong, file)
    assert_unchanged(wrong, before)
    load_packed(right := network("w2a4", scale=scale, seed=1), file)
    assert torch.equal(right(X), network("w2a4", scale=scale)(X))


def test_one_bit_has_a_scale_of_its_own_whatever_the_layer_says(file: Path) -> None:
    save_packed(network("w1a4"), file)
    load_packed(loaded := network("w1a4", seed=1), file)
    assert torch.equal(loaded(X), network("w1a4")(X))


def test_an_ensemble_survives(file: Path) -> None:
    saved = Ensemble([network("w2a4"), network("w4a2", seed=1), network("fp", seed=2)])
    loaded = Ensemble([network("w2a4", seed=3), network("w4a2", seed=4), network("fp", seed=5)])
    save_packed(saved, file)
    load_packed(loaded, file)
    assert torch.equal(loaded.member_logits(X), saved.member_logits(X))


def test_saving_twice_gives_the_same_file(file: Path) -> None:
    assert save_packed(network(), file) == save_packed(network(), file)
    assert save_packed(network(seed=1), file) != save_packed(network(), file)


def test_saving_does_not_change_the_model(file: Path) -> None:
    model = network()
    before = fingerprint(model)
    save_packed(model, file)
    assert_unchanged(model, before)


def test_saving_what_was_loaded_gives_the_same_file(file: Path) -> None:
    digest = save_packed(network(), file)
    model = network(seed=1)
    load_packed(model, file)
    assert save_packed(model, file) == digest


# -- The file


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_weight_takes_its_bits_and_no_more(bits: int, file: Path) -> None:
    save_packed(CIFARConv(Precision(bits, 4)), file)
    payload = 79_200 * bits / 8 + 37_504 * 4
    assert payload <= file.stat().st_size < payload + 1500


def test_what_the_file_holds(file: Path) -> None:
    save_packed(network("w3a4", scale="max"), file)
    tensors = load_file(file)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()} == {
        "0.weight": (torch.uint8, (math.ceil(54 * 3 / 8),)),
        "0.weight.scale": (torch.float32, ()),
        **{f"1.{key}": (torch.float32, (3,)) for key in ("weight", "bias", "running_mean", "running_var")},
        "1.num_batches_tracked": (torch.int64, ()),
        "4.weight": (torch.uint8, (math.ceil(135 * 3 / 8),)),
        "4.weight.scale": (torch.float32, ()),
        "4.bias": (torch.float32, (5,)),
        "5.weight": (torch.float32, (3, 5)),
        "5.bias": (torch.float32, (3,)),
    }


@pytest.mark.parametrize("text", ["w32a4", "fp"])
def test_full_precision_weights_are_stored_as_they_are(text: str, file: Path) -> None:
    model = network(text)
    save_packed(model, file)
    stored, state = load_file(file), model.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[key], state[key]) for key in state)


def test_is_packed(file: Path) -> None:
    save_packed(network(), file)
    assert is_packed(file)
    save_file(network().state_dict(), file)
    assert not is_packed(file)


def test_is_packed_of_no_file_and_of_another_one(file: Path) -> None:
    with pytest.raises(WeightsError, match="no weight file at"):
        is_packed(file)
    file.write_bytes(b"no safetensors at all")
    with pytest.raises(WeightsError, match=r"safetensors.*get it again"):
        is_packed(file)


# -- Files that cannot be loaded


def refused(model: nn.Module, file: Path, message: str, **options: str) -> None:
    """Loading fails with the message and leaves the model as it was."""
    before = fingerprint(model)
    with pytest.raises(WeightsError, match=message):
        load_packed(model, file, **options)
    assert_unchanged(model, before)


def loaded_network(file: Path) -> nn.Module:
    """A model with baked weights, which failing must not undo."""
    model = network(seed=7)
    save_packed(model, file)
    load_packed(model, file)
    return model


def test_a_missing_file(file: Path) -> None:
    model = loaded_network(file)
    file.unlink()
    refused(model, file, "no weight file at")
    refused(model, file.parent, "no weight file at")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file(file: Path, share: float) -> None:
    model = loaded_network(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    refused(model, file, "is truncated or no safetensors file .*: get it again")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_corrupted_file_differs_from_its_card(file: Path, share: float, flip: int) -> None:
    model = loaded_network(file)
    digest, content = sha256(file), bytearray(file.read_bytes())
    content[int(share * len(content))] ^= flip
    file.write_bytes(content)
    refused(model, file, "SHA-256 is not that of the model card or report", expected_sha256=digest)


def test_the_digest_of_the_card_is_accepted(file: Path) -> None:
    saved, loaded = network(), network(seed=1)
    load_packed(loaded, file, expected_sha256=save_packed(saved, file))
    assert torch.equal(loaded(X), saved(X))


def test_a_corrupted_header(file: Path) -> None:
    model = loaded_network(file)
    content = bytearray(file.read_bytes())
    content[8:40] = b"\xff" * 32
    file.write_bytes(content)
    refused(model, file, "is truncated or no safetensors file")


@pytest.mark.parametrize("text", ["w2a4", "w4a4", "w32a4", "fp"])
def test_weights_of_another_precision(text: str, file: Path) -> None:
    model = loaded_network(file)
    save_packed(network(text), file)
    refused(model, file, "was made for another architecture or precision")


def test_quantized_weights_do_not_load_into_full_precision(file: Path) -> None:
    save_packed(network("w3a4"), file)
    refused(network("fp"), file, "was made for another architecture or precision")


def test_another_precision_of_activations_shares_the_weights(file: Path) -> None:
    save_packed(network("w3a4"), file)
    loaded = network("w3a2", seed=1)
    load_packed(loaded, file)
    assert torch.equal(
        loaded.get_submodule("0").quantized_weight(), network("w3a4").get_submodule("0").quantized_weight()
    )


def wider() -> nn.Module:
    return nn.Sequential(*network()[:-1], nn.Linear(5, 4))


def longer() -> nn.Module:
    return nn.Sequential(*network(), nn.Linear(3, 3))


def shorter() -> nn.Module:
    return nn.Sequential(*network()[:-1])


@pytest.mark.parametrize("make", [wider, longer, shorter])
def test_weights_of_another_architecture(make: Callable[[], nn.Module], file: Path) -> None:
    model = loaded_network(file)
    save_packed(make(), file)
    refused(model, file, r"was made for another architecture: it differs in '\d\.\w+'")


def test_weights_of_another_quantized_layer(file: Path) -> None:
    model = loaded_network(file)
    save_packed(nn.Sequential(QuantLinear(2, 2, precision=Precision(3, 4))), file)
    refused(model, file, "was made for another architecture or precision")


def test_plain_weights_are_not_packed_ones(file: Path) -> None:
    model = loaded_network(file)
    save_file(network().state_dict(), file)
    refused(model, file, "holds plain weights, not packed ones: load it with load_state_dict")


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], object], header: str | None = None) -> None:
    """Write a packed file again with other tensors or another description."""
    tensors = load_file(file)
    change(tensors)
    described = json.dumps({"0.weight": {"bits": 3, "shape": [3, 2, 3, 3]}, "4.weight": {"bits": 3, "shape": [5, 27]}})
    save_file(tensors, file, {"empir_packed": described if header is None else header})


def test_a_rewritten_file_is_as_good(file: Path) -> None:
    saved, loaded = network(), network(seed=1)
    save_packed(saved, file)
    rewrite(file, lambda tensors: None)
    load_packed(loaded, file)
    assert torch.equal(loaded(X), saved(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t: t.pop("0.weight"), "'0.weight' is not a stream of codes with a scale", id="no-codes"),
        pytest.param(lambda t: t.pop("4.weight.scale"), "'4.weight' is not a stream of codes", id="no-scale"),
        pytest.param(
            lambda t: t.update({"0.weight": t["0.weight"].float()}), "'0.weight' is not a stream", id="codes-as-floats"
        ),
        pytest.param(
            lambda t: t.update({"4.weight.scale": torch.ones(3)}), "'4.weight' is not a stream", id="three-scales"
        ),
        pytest.param(
            lambda t: t.update({"0.weight": t["0.weight"][:-1].clone()}), "take 21 bytes, found 20", id="too-few-codes"
        ),
        pytest.param(lambda t: t.pop("5.bias"), "differs in '5.bias'", id="no-bias"),
        pytest.param(lambda t: t.update({"6.bias": torch.ones(3)}), "differs in '6.bias'", id="one-more"),
    ],
)
def test_files_that_hold_other_tensors(file: Path, change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    model = loaded_network(file)
    rewrite(file, change)
    refused(model, file, message)


@pytest.mark.parametrize("header", ["", "{", "[]", "{}", "null"])
def test_headers_that_describe_something_else(file: Path, header: str) -> None:
    model = loaded_network(file)
    rewrite(file, lambda tensors: None, header)
    refused(model, file, "is damaged|was made for another architecture")


# -- State dicts of other origin


def test_load_strictly(file: Path) -> None:
    saved, loaded = network(), network(seed=1)
    load_strictly(loaded, saved.state_dict(), file)
    assert torch.equal(loaded(X), saved(X))


@pytest.mark.parametrize("make", [wider, longer, shorter])
def test_load_strictly_refuses_another_architecture(make: Callable[[], nn.Module], file: Path) -> None:
    model = network(seed=1)
    before = fingerprint(model)
    with pytest.raises(WeightsError, match=r"another architecture.*differs in"):
        load_strictly(model, make().state_dict(), file)
    assert_unchanged(model, before)


# -- Writing that fails


def full_disk(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    path.write_bytes(b"half of i")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("before", [None, b"an older file"], ids=["nothing-there", "older-file-there"])
def test_a_full_disk_leaves_no_partial_file(before: bytes | None, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if before is not None:
        file.write_bytes(before)
    monkeypatch.setattr(tensor_files, "save_file", full_disk)
    with pytest.raises(WeightsError, match=r"weights\.safetensors cannot be written \(No space left"):
        save_packed(network(), file)
    assert [path.read_bytes() for path in file.parent.iterdir()] == ([] if before is None else [before])


def test_the_file_appears_in_one_step_or_not_at_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        assert is_packed(source)
        assert target.read_bytes() == b"an older file"
        raise PermissionError(errno.EACCES, "Permission denied")

    file.write_bytes(b"an older file")
    monkeypatch.setattr(atomic.os, "replace", refuse)
    with pytest.raises(WeightsError, match=r"cannot be written \(Permission denied"):
        save_packed(network(), file)
    assert [path.read_bytes() for path in file.parent.iterdir()] == [b"an older file"]


def test_a_folder_in_the_way(file: Path) -> None:
    file.mkdir()
    with pytest.raises(WeightsError, match="cannot be written"):
        save_packed(network(), file)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("parent", ["missing", "no-folder"])
def test_a_missing_folder(parent: str, tmp_path: Path) -> None:
    (tmp_path / "no-folder").write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot be written"):
        save_packed(network(), tmp_path / parent / "weights.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["no-folder"]


def test_writing_leaves_one_file_and_replaces_it(file: Path) -> None:
    save_packed(network(), file)
    save_packed(network(seed=1), file)
    assert list(file.parent.iterdir()) == [file]
    loaded = network()
    load_packed(loaded, file)
    assert torch.equal(loaded(X), network(seed=1)(X))
