"""The model under evaluation is a copy, the model itself stays as it was, and its name says what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from empir_plugin.attacks import fgsm, pgd
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.cache.code_hash import foreign_code_sha256, sources_sha256
from empir_plugin.evaluation.cache.keys import subject_of
from empir_plugin.evaluation.identity import describe, model_fingerprint, settings_fingerprint, state_fingerprint
from empir_plugin.evaluation.prepare import exact_float32, parse_device, prepare, require_weights
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanProbability
from empir_plugin.models.layers import QuantLinear, bake_
from empir_plugin.models.precision import Precision

CPU = torch.device("cpu")


def quantized() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), QuantLinear(16, 3, precision=Precision.parse("w2a2")))


def test_the_model_is_left_as_it_was() -> None:
    model = quantized().train()
    model[0].weight.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    subject = prepare(model, CPU)
    assert not subject.training
    assert subject[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]
    assert model.training
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert model[0].weight.is_contiguous()
    assert model[2].baked_weight is None
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_the_copy_computes_the_same() -> None:
    model, x = quantized().eval(), torch.rand(6, 3, 4, 4)
    assert torch.equal(prepare(model, CPU)(x).argmax(1), model(x).argmax(1))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        prepare(lambda x: x, CPU)  # type: ignore[arg-type]
    model = nn.Linear(2, 2)
    model.kept = model(torch.rand(1, 2))  # type: ignore[assignment]
    with pytest.raises(EvaluationError, match="cannot be copied"):
        prepare(model, CPU)


def test_a_model_without_weights_is_refused() -> None:
    model = nn.Linear(2, 2)
    require_weights(model, "toy")
    model.weights_loaded = False  # type: ignore[assignment]
    with pytest.raises(EvaluationError, match="toy has no weights"):
        require_weights(model, "toy")


def test_tf32_is_off_inside_and_as_before_outside() -> None:
    cudnn = torch.backends.cudnn
    before, inside = cudnn.allow_tf32, []

    def failing() -> None:
        with exact_float32():
            inside.append(cudnn.allow_tf32)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert inside == [False]
    assert cudnn.allow_tf32 == before


@pytest.mark.parametrize("text", ["gpu", "", "cuda:99", "meta", "mps"])
def test_a_device_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_device(text)


def test_a_fingerprint_survives_baking_and_mode_but_no_other_weight() -> None:
    model = quantized()
    name = model_fingerprint(model)
    bake_(model)
    assert model_fingerprint(model.eval()) == name
    assert model_fingerprint(prepare(model, CPU)) == name
    with torch.no_grad():
        model[0].bias[0] += 1e-6  # type: ignore[index]
    assert model_fingerprint(model) != name


def test_latent_weights_behind_the_same_levels_do_not_count() -> None:
    model = quantized()
    name = model_fingerprint(model)
    with torch.no_grad():
        model[2].weight.mul_(1 + 1e-7)  # type: ignore[union-attr]
    assert model_fingerprint(model) == name


def test_buffers_outside_of_the_state_count() -> None:
    def normalised(mean: float) -> nn.Module:
        model = nn.Flatten()
        model.register_buffer("mean", torch.tensor(mean), persistent=False)
        return model

    assert model_fingerprint(normalised(0.4)) != model_fingerprint(normalised(0.5))


def test_settings_tell_rules_and_numbers_apart() -> None:
    members = [nn.Linear(2, 2), nn.Linear(2, 2)]
    vote, mean = Ensemble(members, MaxVote()), Ensemble(members, MeanProbability())
    assert settings_fingerprint(vote) != settings_fingerprint(mean)
    assert settings_fingerprint(vote) == settings_fingerprint(Ensemble(members, MaxVote()))
    assert settings_fingerprint(vote.train()) == settings_fingerprint(vote.eval())


class Signed(nn.Module):
    """Settings where a network may hide them: a private attribute, an array."""

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


def test_settings_tell_private_attributes_arrays_hooks_and_traced_code_apart() -> None:
    hooked = Signed()
    hooked.register_forward_pre_hook(_brighter)
    traced = [torch.fx.symbolic_trace(function) for function in (_double, _negate)]
    models = [Signed(), Signed(-1), Signed(mean=0.9), hooked, *traced]
    assert len({settings_fingerprint(model) for model in models}) == len(models)
    assert settings_fingerprint(Signed(-1)) == settings_fingerprint(Signed(-1))


def test_a_network_with_a_nameless_setting_has_no_place_in_a_store() -> None:
    model = nn.Flatten()
    model.shift = lambda x: x  # type: ignore[assignment]
    images, labels = torch.zeros(1, 1, 1, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    data = ImageSet("toy", "test", images, labels, ("a", "b"))
    with pytest.raises(InputError, match=r"cannot be told from others in a store .* or evaluate without"):
        subject_of(model, data)


def test_a_method_is_what_it_is_bound_to(toys: ModuleType) -> None:
    assert describe(fgsm().__call__) != describe(pgd(3).__call__)
    assert describe(fgsm().__call__) == describe(fgsm().__call__)
    nothing = foreign_code_sha256(fgsm().__call__)
    assert foreign_code_sha256(toys.Compare().forward) not in (nothing, foreign_code_sha256(3))


def test_odd_tensors_have_fingerprints() -> None:
    model = nn.Module()
    model.register_buffer("empty", torch.zeros(0, 3))
    model.register_buffer("scalar", torch.tensor(True))
    model.halved = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16).t())
    assert len(model_fingerprint(model)) == len(state_fingerprint(model)) == 64


def test_a_state_fingerprint_sees_weights_buffers_and_mode() -> None:
    model = nn.BatchNorm2d(3).eval()
    found = {state_fingerprint(model)}
    found.add(state_fingerprint(model.train()))
    model(torch.rand(2, 3, 2, 2))
    found.add(state_fingerprint(model.eval()))
    with torch.no_grad():
        model.weight[0] = 2
    found.add(state_fingerprint(model))
    assert len(found) == 4


@dataclass(frozen=True)
class Aim:
    value: object


def test_descriptions_hold_what_decides_and_no_address() -> None:
    assert describe(Aim((1, 2.5, "a", None))) == "Aim(value=(1, 2.5, 'a', None))"
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert describe(Aim(one)) != describe(Aim(other))
    other.load_state_dict(one.state_dict())
    assert describe(Aim(one)) == describe(Aim(other))
    assert describe(Aim(torch.zeros(2))) != describe(Aim(torch.ones(2)))
    assert describe(Aim({"b": {3}, "a": [CPU]})) == "Aim(value=dict('b': set(3), 'a': list(cpu)))"
    assert describe(Aim(parse_device)).endswith("subject.parse_device)")


@pytest.mark.parametrize("value", [lambda x: x, object(), (i for i in ())], ids=["lambda", "object", "generator"])
def test_what_has_no_lasting_name_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        describe(Aim(value))


def test_what_holds_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InputError, match="too deep"):
        describe(endless)


def test_foreign_code_is_known_by_its_source(toys: ModuleType) -> None:
    nothing = foreign_code_sha256(nn.ReLU(), 3, "a")
    assert foreign_code_sha256(toys.Compare()) != nothing
    assert foreign_code_sha256(nn.Sequential(nn.ReLU(), toys.Compare())) == foreign_code_sha256(toys.Compare())
    assert foreign_code_sha256(toys.PLAN[0].attack) != nothing
    namespace: dict[str, type[nn.Module]] = {}
    exec("from torch import nn\nclass Loose(nn.Module):\n    pass\nLoose.__module__ = 'nowhere'", namespace)
    with pytest.raises(InputError, match="no source file"):
        foreign_code_sha256(namespace["Loose"]())


def test_sources_count_by_their_statements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from empir_plugin.evaluation.cache import code_hash as code

    def named(text: str) -> str:
        folder = tmp_path / "evaluation"
        folder.mkdir(exist_ok=True)
        (folder / "part.py").write_text(text)
        sources_sha256.cache_clear()
        return sources_sha256("evaluation")

    monkeypatch.setattr(code, "__file__", str(tmp_path / "evaluation" / "code.py"))
    one = named('"""Doc."""\ndef f(x):\n    """Says."""\n    return x + 1\n')
    assert named("def f(x):  # other words\n    return (x + 1)\n") == one
    assert named("def f(x):\n    return x + 2\n") != one
    with pytest.raises(EvaluationError, match="install it again"):
        named("def f(:\n")
    sources_sha256.cache_clear()
