"""Packed files of networks that share weights, and types of numbers in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from empir_plugin.errors import WeightsError
from empir_plugin.models.layers import QuantizedLayer, QuantLinear
from empir_plugin.models.packing import load_packed, load_strictly, packed_names, save_packed
from empir_plugin.models.quantize import Precision, Scale
from empir_plugin.models.weight_quantizers import UniformWeightQuantizer

X = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))


def quantized(text: str = "w2a4", scale: Scale = "max") -> QuantLinear:
    return QuantLinear(6, 6, precision=Precision.parse(text), scale=scale)


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Linear(6, 3)).eval()


def one_of_two_quantized() -> nn.Module:
    plain, other = nn.Linear(6, 6), quantized()
    other.weight = plain.weight
    return chain(plain, other)


def both_quantized_alike() -> nn.Module:
    one, other = quantized(), quantized()
    other.weight = one.weight
    return chain(one, other)


def both_quantized_differently() -> nn.Module:
    one, other = quantized("w2a4"), quantized("w4a4")
    other.weight = one.weight
    return chain(one, other)


def two_alike_and_a_plain_one() -> nn.Module:
    one, other, plain = quantized(), quantized(), nn.Linear(6, 6, bias=False)
    one.weight = other.weight = plain.weight
    return chain(one, other, plain)


def a_shared_layer() -> nn.Module:
    layer = quantized()
    return chain(layer, nn.ReLU(), layer)


def a_shared_plain_layer() -> nn.Module:
    layer = nn.Linear(6, 6)
    return chain(layer, quantized(), layer)


def transposed() -> nn.Module:
    plain, other = nn.Linear(6, 6), quantized()
    other.weight = nn.Parameter(plain.weight.detach().t())
    return chain(plain, other)


def a_part_of_another() -> nn.Module:
    plain, other = nn.Linear(6, 12, bias=False), quantized()
    other.weight = nn.Parameter(plain.weight.detach()[3:9])
    return chain(other, plain, nn.Linear(12, 6))


def halves_of_one_tensor() -> nn.Module:
    one, other, both = quantized(), quantized("w4a4"), torch.randn(12, 6)
    one.weight, other.weight = nn.Parameter(both[:6]), nn.Parameter(both[6:])
    return chain(one, other)


def a_weight_in_a_buffer() -> nn.Module:
    model = chain(quantized())
    model.register_buffer("kept", model[0].weight.detach())
    return model


NETWORKS = [
    pytest.param(one_of_two_quantized, [], id="one-of-two"),
    pytest.param(both_quantized_alike, ["0.weight", "1.weight"], id="both-alike"),
    pytest.param(both_quantized_differently, [], id="both-differently"),
    pytest.param(two_alike_and_a_plain_one, [], id="two-and-a-plain-one"),
    pytest.param(a_shared_layer, ["0.weight", "2.weight"], id="shared-layer"),
    pytest.param(a_shared_plain_layer, ["1.weight"], id="shared-plain-layer"),
    pytest.param(transposed, [], id="transposed"),
    pytest.param(a_part_of_another, [], id="part"),
    pytest.param(halves_of_one_tensor, ["0.weight", "1.weight"], id="halves"),
    pytest.param(a_weight_in_a_buffer, [], id="buffer"),
]


@pytest.mark.parametrize(("make", "packed"), NETWORKS)
def test_shared_weights_give_the_same_logits_after_loading(
    tmp_path: Path, make: Callable[[], nn.Module], packed: list[str]
) -> None:
    torch.manual_seed(0)
    model = make()
    path = tmp_path / "model.safetensors"
    save_packed(model, path)
    assert sorted(packed_names(path)) == packed
    torch.manual_seed(1)
    other = make()
    assert not torch.allclose(other(X), model(X))
    load_packed(other, path)
    torch.testing.assert_close(other(X), model(X))
    save_packed(other, again := tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("make", [one_of_two_quantized, both_quantized_alike])
def test_a_network_that_shares_other_weights_is_refused(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    save_packed(make(), path := tmp_path / "model.safetensors")
    apart = chain(nn.Linear(6, 6), quantized())
    before = apart(X)
    with pytest.raises(WeightsError, match="made for another architecture"):
        load_packed(apart, path)
    assert torch.equal(apart(X), before)


def test_one_name_of_shared_weights_is_enough_in_a_plain_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = (chain(layer := nn.Linear(6, 6), layer) for _ in range(2))
    save_model(model, str(path := tmp_path / "plain.safetensors"))
    state = load_file(path)
    assert "0.weight" not in state or "1.weight" not in state
    load_strictly(other, state, path)
    assert torch.equal(other(X), model(X))
    with pytest.raises(WeightsError, match=r"it lacks .*weight"):
        load_strictly(chain(nn.Linear(6, 6), nn.Linear(6, 6)), state, path)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (one_of_two_quantized, ("0.weight", "1.weight")),
        (a_shared_plain_layer, ("0.weight", "2.weight")),
        (transposed, ("0.weight", "1.weight")),
        (a_part_of_another, ("0.weight", "1.weight")),
        (a_weight_in_a_buffer, ("0.weight", "kept")),
    ],
)
def test_other_numbers_for_shared_weights_are_refused_and_name_both(
    make: Callable[[], nn.Module], names: tuple[str, str]
) -> None:
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_strictly(model, before, "theirs.pt")
    state = {**before, names[1]: before[names[1]] + 1}
    with pytest.raises(WeightsError, match=r"theirs\.pt .*separate") as error:
        load_strictly(model, state, "theirs.pt")
    assert all(repr(name) in str(error.value) for name in names)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_parts_of_one_tensor_that_do_not_overlap_load_any_numbers() -> None:
    model = halves_of_one_tensor()
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    load_strictly(model, state, "theirs.pt")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


# -- Types


def of_type(dtype: torch.dtype, key: str = "0.weight") -> dict[str, Tensor]:
    state = dict(chain(quantized()).state_dict())
    return {**state, key: state[key].to(dtype)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_loaded(dtype: torch.dtype) -> None:
    model = chain(quantized())
    state = of_type(dtype)
    load_strictly(model, state, Path("floats"))
    assert torch.equal(model[0].weight, state["0.weight"].float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("key", ["0.weight", "0.bias", "1.weight"])
def test_codes_are_not_loaded_as_weights(dtype: torch.dtype, key: str) -> None:
    model = chain(quantized())
    before = model(X)
    with pytest.raises(WeightsError, match=rf"codes.safetensors has '{key}' as {dtype}, .*float32.*scale"):
        load_strictly(model, of_type(dtype, key), Path("codes.safetensors"))
    assert torch.equal(model(X), before)


def test_codes_are_named_before_the_scales_beside_them() -> None:
    state = {**of_type(torch.int8), "0.weight_scale": torch.ones(6)}
    with pytest.raises(WeightsError, match=r"'0.weight' as torch.int8"):
        load_strictly(chain(quantized()), state, Path("codes"))


def test_a_packed_file_without_its_header_is_told_from_weights(tmp_path: Path) -> None:
    save_packed(chain(quantized()), path := tmp_path / "packed.safetensors")
    save_file(load_file(path), bare := tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match=r"'0.weight' as torch.uint8"):
        load_strictly(chain(quantized()), load_file(bare), bare)


def test_counts_may_be_whole_floats_but_not_fractions() -> None:
    model = nn.BatchNorm1d(2)
    load_strictly(model, {**model.state_dict(), "num_batches_tracked": torch.tensor(7.0)}, Path("average"))
    assert model.num_batches_tracked == 7
    with pytest.raises(WeightsError, match=r"num_batches_tracked.*float32"):
        load_strictly(model, {**model.state_dict(), "num_batches_tracked": torch.tensor(7.5)}, Path("average"))


def test_tensors_in_a_packed_file_have_types_too(tmp_path: Path) -> None:
    model = chain(quantized())
    model.half()
    assert isinstance(model[0], QuantizedLayer)
    model[1].weight = nn.Parameter(model[1].weight.detach().to(torch.int8), requires_grad=False)
    save_packed(model, path := tmp_path / "packed.safetensors")
    with pytest.raises(WeightsError, match=r"'1.weight' as torch.int8"):
        load_packed(chain(quantized()), path)


def test_layers_of_the_same_bits_and_another_quantizer_are_not_packed_alike(tmp_path: Path) -> None:
    model = both_quantized_alike()
    layer = model.get_submodule("1")
    assert isinstance(layer, QuantizedLayer)
    layer.use_quantizers_(UniformWeightQuantizer(2), layer.activation_quantizer)
    save_packed(model, path := tmp_path / "model.safetensors")
    assert packed_names(path) == ()


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor.*deprecated")
@pytest.mark.parametrize(
    ("special", "kind"),
    [(lambda w: w.to_sparse(), "sparse_coo"), (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "qint8")],
    ids=["sparse", "quantized by torch"],
)
def test_special_tensors_are_not_packed(tmp_path: Path, special: Callable[[Tensor], Tensor], kind: str) -> None:
    model = chain(quantized(), nn.Linear(6, 6))
    model.register_buffer("special", special(torch.eye(2)))
    with pytest.raises(WeightsError, match=rf"'special', a Tensor \(torch.{kind}\): dequantize"):
        save_packed(model, path := tmp_path / "model.safetensors")
    assert not path.exists()
