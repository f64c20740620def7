"""Identity: hashes of networks, texts of settings and states see what decides a result, and nothing else."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import fgsm, pgd
from empir_plugin.errors import InputError
from empir_plugin.evaluation.identity import (
    IDENTITY,
    ModelIdentity,
    describe,
    model_fingerprint,
    model_table,
    settings_fingerprint,
    state_fingerprint,
)
from empir_plugin.evaluation.prepare import parse_device, prepare
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanProbability, shift_above_zero_
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.layers import QuantConv2d, QuantLinear, bake_
from empir_plugin.models.quantize import Precision, Scale
from empir_plugin.zoo.registry import load_model

CPU = torch.device("cpu")
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def quantized_network(scale: Scale = "none", bits: str = "w2a2") -> nn.Module:
    torch.manual_seed(0)
    layer = QuantLinear(16, 3, precision=Precision.parse(bits), scale=scale)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), layer)


@VERSIONS
def test_a_fingerprint_depends_on_weights_and_not_on_baking_or_mode(version: int) -> None:
    model = quantized_network()
    before = model_fingerprint(model, version)
    bake_(model)
    assert model_fingerprint(model.eval(), version) == before
    assert model_fingerprint(prepare(model, CPU), version) == before
    with torch.no_grad():
        model[0].bias[0] += 1e-6  # type: ignore[index]
    assert model_fingerprint(model, version) != before


@VERSIONS
def test_latent_weights_with_the_same_levels_have_one_fingerprint(version: int) -> None:
    model = quantized_network()
    before = model_fingerprint(model, version)
    with torch.no_grad():
        model[2].weight.mul_(1 + 1e-7)  # type: ignore[union-attr]
    assert model_fingerprint(model, version) == before


@VERSIONS
def test_a_fingerprint_sees_buffers_outside_of_the_state_dict(version: int) -> None:
    def with_mean(mean: float) -> nn.Module:
        model = nn.Flatten()
        model.register_buffer("mean", torch.tensor(mean), persistent=False)
        return model

    assert model_fingerprint(with_mean(0.4), version) != model_fingerprint(with_mean(0.5), version)


@pytest.mark.parametrize("scale", ["none", "max", "mean"])
def test_memory_layout_does_not_change_a_fingerprint(scale: Scale) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(QuantConv2d(3, 64, 5, precision=Precision.parse("w2a2"), scale=scale), nn.Conv2d(64, 4, 3))
    before = model_fingerprint(model)
    assert model_fingerprint(model.to(memory_format=torch.channels_last)) == before


@pytest.mark.gpu
def test_the_device_does_not_change_a_fingerprint() -> None:
    model = quantized_network("max")
    assert model_fingerprint(model) == model_fingerprint(model.cuda())


class Shifted(nn.Module):
    """A plain tensor that decides, as an attribute."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = torch.tensor(shift)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift).flatten(1)


def voting(rule: Any = None) -> Ensemble:
    torch.manual_seed(0)
    return Ensemble([nn.Linear(2, 2), nn.Linear(2, 2)], rule)


DIFFERENT: dict[str, tuple[nn.Module, nn.Module]] = {
    "plain tensor": (Shifted(0.0), Shifted(0.3)),
    "dimension": (nn.Flatten(1), nn.Flatten(2)),
    "rule": (voting(MaxVote()), voting(MeanProbability())),
    "bits of the input": (quantized_network(), quantized_network(bits="w2a4")),
    "scale": (quantized_network("none"), quantized_network("max")),
    "child": (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_different_networks_have_different_fingerprints(one: nn.Module, other: nn.Module) -> None:
    assert model_fingerprint(one) != model_fingerprint(other)


def test_a_layer_used_twice_is_as_good_as_two() -> None:
    shared = nn.ReLU()
    twice = nn.Sequential(shared, nn.Flatten(), shared)
    assert model_fingerprint(twice) == model_fingerprint(nn.Sequential(nn.ReLU(), nn.Flatten(), nn.ReLU()))


def test_the_integer_form_of_a_network_has_a_fingerprint() -> None:
    model = to_integer(quantized_network().eval())
    assert model_fingerprint(model) == model_fingerprint(to_integer(quantized_network().eval()))


NORMS: dict[str, tuple[nn.Module, str]] = {
    "batch": (nn.BatchNorm2d(2), "2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True"),
    "batch, not affine": (
        nn.BatchNorm1d(2, affine=False),
        "2, eps=1e-05, momentum=0.1, affine=False, track_running_stats=True",
    ),
    "instance": (nn.InstanceNorm2d(2), "2, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False"),
    "layer": (nn.LayerNorm(2), "(2,), eps=1e-05, elementwise_affine=True"),
    "group": (nn.GroupNorm(1, 2, affine=False), "1, 2, eps=1e-05, affine=False"),
}


@pytest.mark.parametrize(("layer", "text"), NORMS.values(), ids=NORMS)
def test_version_1_is_the_same_where_torch_does_not_write_the_bias_of_a_norm(layer: nn.Module, text: str) -> None:
    older = type(type(layer).__name__, (type(layer),), {"extra_repr": lambda self: text})
    model = nn.Sequential(copy.deepcopy(layer), nn.Flatten())
    before = model_fingerprint(model, 1)
    model[0].__class__ = older
    assert "bias" not in repr(model)
    assert model_fingerprint(model, 1) == before


def test_version_1_is_known() -> None:
    """The value that torch 2.14 gave, without a rule for older releases."""
    norms = nn.Sequential(nn.BatchNorm2d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2), nn.ReLU())
    assert model_fingerprint(norms, 1) == "12556fd2d2a35affa7d31b50ce8d58d6b999322ad30acbe798d11219658344f9"


@pytest.mark.parametrize("version", [0, 3, "2", [2], True], ids=str)
def test_an_unknown_version_of_the_identity_is_refused(version: Any) -> None:
    with pytest.raises(InputError, match=r"1 or 2.*release that wrote it"):
        model_fingerprint(nn.Flatten(), version)


def test_identities_of_different_versions_are_compared_by_the_model() -> None:
    model = nn.Flatten()
    old, new = (ModelIdentity(model_fingerprint(model, version), version) for version in (1, 2))
    assert ModelIdentity.of_table({"name": "toy", "sha256": old.sha256}) == old
    assert ModelIdentity.of_table(model_table(model, "toy")) == new
    assert old.is_same(new, lambda version: model_fingerprint(model, version))
    assert not old.is_same(new, lambda version: model_fingerprint(nn.ReLU(), version))
    assert not old.is_same(ModelIdentity("ab", 1), lambda version: model_fingerprint(model, version))


def test_settings_fingerprints_see_rules() -> None:
    vote, mean = voting(MaxVote()), voting(MeanProbability())
    assert settings_fingerprint(vote) != settings_fingerprint(mean)
    assert settings_fingerprint(vote) == settings_fingerprint(voting(MaxVote()))
    assert settings_fingerprint(vote.train()) == settings_fingerprint(vote.eval())


class Signed(nn.Module):
    """Settings in a private attribute and in an array."""

    def __init__(self, sign: int = 1, mean: float = 0.0) -> None:
        super().__init__()
        self._sign, self.mean = sign, np.array([mean])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._sign * (x - float(self.mean[0])).flatten(1)


def _brighter(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return inputs[0] + 0.1


def _double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def _negate(x: torch.Tensor) -> torch.Tensor:
    return -x


def test_settings_fingerprints_see_private_attributes_arrays_hooks_and_traced_code() -> None:
    hooked = Signed()
    hooked.register_forward_pre_hook(_brighter)
    traced = [torch.fx.symbolic_trace(function) for function in (_double, _negate)]
    models = [Signed(), Signed(-1), Signed(mean=0.9), hooked, *traced]
    assert len({settings_fingerprint(model) for model in models}) == len(models)
    assert settings_fingerprint(Signed(-1)) == settings_fingerprint(Signed(-1))


class Scaled(nn.Module):
    """Its code names one private attribute in a getter, another in a setter only."""

    @property
    def scale(self) -> object:
        return self._read

    @scale.setter
    def scale(self, value: object) -> None:
        self._written = value


@pytest.mark.parametrize(("name", "counts"), [("_read", True), ("_written", True), ("_attached", False)])
@pytest.mark.parametrize("trusted", [True, False])
def test_settings_of_trusted_classes_are_those_that_their_code_names(
    monkeypatch: pytest.MonkeyPatch, trusted: bool, name: str, counts: bool
) -> None:
    if trusted:
        monkeypatch.setattr(Scaled, "__module__", "empir_plugin.toy")
    one, other = Scaled(), Scaled()
    one.__dict__[name], other.__dict__[name] = 1, 2
    assert (settings_fingerprint(one) != settings_fingerprint(other)) is (counts or not trusted)


@dataclass(frozen=True)
class Times:
    """A hook with a setting, which counts."""

    factor: float

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return self.factor * output


def _doubled(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return 2 * output


class Shifting(nn.Module):
    """Its methods serve as hooks."""

    def add(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + 1


def hooked(*hooks: Any, pre: Any = None, forward: Any = None) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    for hook in hooks:
        model[1].register_forward_hook(hook)
    if pre is not None:
        model[1].register_forward_pre_hook(pre)
    if forward is not None:
        model[1].forward = forward
    return model


def test_published_fingerprints_see_hooks_and_a_forward_of_its_own() -> None:
    def closure(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + len(models)

    models = [
        hooked(),
        hooked(_doubled),
        hooked(_doubled, _doubled),
        hooked(Times(2.0)),
        hooked(Times(3.0)),
        hooked(closure),
        hooked(lambda module, inputs, output: output + 1),
        hooked(Shifting().add),
        hooked(pre=_brighter),
        hooked(forward=_negate),
        hooked(forward=functools.partial(_double)),
    ]
    fingerprints = [model_fingerprint(model) for model in models]
    assert len(set(fingerprints)) == len(models)
    assert [model_fingerprint(copy.deepcopy(model)) for model in models] == fingerprints
    model = hooked()  # A backward hook does not change an output.
    model[1].register_full_backward_hook(lambda module, inputs, outputs: None)
    assert model_fingerprint(model) == fingerprints[0]


def test_outputs_shifted_above_zero_are_another_function() -> None:
    model, shifted = voting(), voting()
    shift_above_zero_(shifted)
    assert model_fingerprint(model) != model_fingerprint(shifted)
    again = voting()
    shift_above_zero_(again)
    assert model_fingerprint(again) == model_fingerprint(shifted)


def test_what_closures_hold_is_not_seen() -> None:
    """As the documentation says; such a model cannot have stored results."""
    one, other = (hooked(lambda module, inputs, output, by=by: output + by) for by in (1, 2))
    assert model_fingerprint(one) == model_fingerprint(other)
    with pytest.raises(InputError, match="no name that is valid in another process"):
        settings_fingerprint(one)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_fingerprints_see_weights_that_torch_has_packed() -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}, dtype=torch.qint8)

    assert model_fingerprint(network(0)) == model_fingerprint(network(0))
    assert model_fingerprint(network(0)) != model_fingerprint(network(1))


def test_sparse_tensors_have_fingerprints() -> None:
    one, other = nn.Module(), nn.Module()
    one.register_buffer("mask", torch.eye(2).to_sparse())
    other.register_buffer("mask", torch.ones(2, 2).to_sparse())
    assert model_fingerprint(one) != model_fingerprint(other)


@pytest.mark.parametrize("make", [voting, quantized_network], ids=["ensemble", "network"])
def test_what_libraries_attach_does_not_prevent_the_use_of_stored_results(make: Callable[[], nn.Module]) -> None:
    model, before = make(), settings_fingerprint(make())
    for module in model.modules():
        module._model_args = {"pretrained": True}  # timm 1.0.31
        module.run_id = object()  # loggers
        module._is_hf_initialized = True  # transformers
    assert settings_fingerprint(model) == before


def test_attributes_that_code_may_read_count() -> None:
    with_forward = voting()
    with_forward.forward = _negate
    foreign, marked = Signed(), Signed()
    foreign._model_args = {"pretrained": True}
    marked.mark = 3
    assert settings_fingerprint(with_forward) != settings_fingerprint(voting())
    assert settings_fingerprint(foreign) == settings_fingerprint(Signed())
    assert settings_fingerprint(marked) != settings_fingerprint(Signed())


def test_empty_scalar_and_half_precision_tensors_have_fingerprints() -> None:
    model = nn.Module()
    model.register_buffer("empty", torch.zeros(0, 3))
    model.register_buffer("scalar", torch.tensor(True))
    model.halved = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16).t())
    assert len(model_fingerprint(model)) == len(state_fingerprint(model)) == 64


def test_state_fingerprints_see_weights_buffers_and_mode() -> None:
    model = nn.BatchNorm2d(3).eval()
    states = {state_fingerprint(model)}
    states.add(state_fingerprint(model.train()))
    model(torch.rand(2, 3, 2, 2))
    states.add(state_fingerprint(model.eval()))
    with torch.no_grad():
        model.weight[0] = 2
    states.add(state_fingerprint(model))
    assert len(states) == 4


@dataclass(frozen=True)
class Holder:
    value: object


def test_descriptions_contain_settings_and_weights_and_no_address() -> None:
    assert describe(Holder((1, 2.5, "a", None))) == "Holder(value=(1, 2.5, 'a', None))"
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert describe(Holder(one)) != describe(Holder(other))
    other.load_state_dict(one.state_dict())
    assert describe(Holder(one)) == describe(Holder(other))
    assert describe(Holder(torch.zeros(2))) != describe(Holder(torch.ones(2)))
    assert describe(Holder({"b": {3}, "a": [CPU]})) == "Holder(value=dict('b': set(3), 'a': list(cpu)))"
    assert describe(Holder(parse_device)) == "Holder(value=empir_plugin.evaluation.prepare.parse_device)"
    assert describe(fgsm().__call__) == describe(fgsm().__call__) != describe(pgd(3).__call__)


@pytest.mark.parametrize("value", [lambda x: x, object(), (i for i in ())], ids=["lambda", "object", "generator"])
def test_values_without_a_lasting_name_are_refused(value: object) -> None:
    with pytest.raises(InputError):
        describe(Holder(value))


def test_a_value_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InputError, match=r"list.*flatten it"):
        describe(endless)


def test_the_fingerprint_of_a_shipped_model() -> None:
    """A snapshot: published records rest on it, so a change needs a new version of the identity."""
    model = load_model("cifarconv-w2a2")
    assert IDENTITY == 2
    assert model_fingerprint(model) == "6402c342065625bcc058091270b585207264e2e634b797085a26c69c601d2fd7"
    assert model_fingerprint(model, 1) == "f6023a38a217b91d51483a0d65aac4ad45c40698182bc3bafeea64573b072236"
