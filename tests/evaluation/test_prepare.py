"""The model under evaluation is a copy, and the model itself stays unchanged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from empir_plugin.attacks import fgsm
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.cache.keys import foreign_code_sha256, sources_sha256, subject_key
from empir_plugin.evaluation.prepare import exact_float32, parse_device, prepare, require_weights
from empir_plugin.models.layers import QuantLinear
from empir_plugin.models.quantize import Precision

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
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(EvaluationError, match=r"cannot be copied .*lock.*copy\.deepcopy"):
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


@pytest.fixture
def newer_switches() -> Iterator[dict[str, Any]]:
    """The switches that PyTorch has since 2.9, by name, set back after the test."""
    backends: Any = torch.backends
    owners = {
        "cuda.matmul": backends.cuda.matmul,
        "cudnn.conv": getattr(backends.cudnn, "conv", None),
        "cudnn.rnn": getattr(backends.cudnn, "rnn", None),
        "cudnn": backends.cudnn,
        "all": backends,
    }
    if not hasattr(backends, "fp32_precision"):
        pytest.skip(f"torch {torch.__version__} has only the older switches")
    before = {name: owner.fp32_precision for name, owner in owners.items()}
    yield owners
    for owner in owners.values():
        owner.fp32_precision = "none"
    for name, owner in owners.items():
        owner.fp32_precision = before[name]
    assert {name: owner.fp32_precision for name, owner in owners.items()} == before


@pytest.mark.parametrize("setting", [None, "cuda.matmul", "cudnn.conv", "cudnn.rnn", "cudnn", "all"])
@pytest.mark.parametrize("value", ["tf32", "ieee"])
def test_tf32_is_off_inside_and_as_it_was_after_whichever_switch_was_set(
    newer_switches: dict[str, Any], setting: str | None, value: str
) -> None:
    if setting is not None:
        newer_switches[setting].fp32_precision = value
    before = {name: owner.fp32_precision for name, owner in newer_switches.items()}
    with exact_float32():
        inside = {name: newer_switches[name].fp32_precision for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn")}
    assert "tf32" not in inside.values()
    assert {name: owner.fp32_precision for name, owner in newer_switches.items()} == before


@pytest.mark.parametrize("text", ["gpu", "", "cuda:99", "meta", "mps"])
def test_a_device_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_device(text)


class Moved(nn.Flatten):
    """Of a class whose code may read any attribute."""


def test_a_network_with_a_nameless_setting_has_no_place_in_a_store() -> None:
    model = Moved()
    model.shift = lambda x: x  # type: ignore[assignment]
    images, labels = torch.zeros(1, 1, 1, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    data = ImageSet("toy", "test", images, labels, ("a", "b"))
    with pytest.raises(InputError, match=r"cannot be stored.*or evaluate without a store"):
        subject_key(model, data)


def test_the_code_of_a_method_is_that_of_its_object(toys: ModuleType) -> None:
    nothing = foreign_code_sha256(fgsm().__call__)
    assert foreign_code_sha256(toys.Compare().forward) not in (nothing, foreign_code_sha256(3))


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
    from empir_plugin.evaluation.cache import keys as code_hash

    def named(text: str) -> str:
        folder = tmp_path / "evaluation"
        folder.mkdir(exist_ok=True)
        (folder / "part.py").write_text(text)
        sources_sha256.cache_clear()
        return sources_sha256("evaluation")

    monkeypatch.setattr(code_hash, "__file__", str(tmp_path / "evaluation" / "cache" / "code_hash.py"))
    one = named('"""Doc."""\ndef f(x):\n    """Says."""\n    return x + 1\n')
    assert named("def f(x):  # other words\n    return (x + 1)\n") == one
    assert named("def f(x):\n    return x + 2\n") != one
    with pytest.raises(EvaluationError, match="install it again"):
        named("def f(:\n")
    sources_sha256.cache_clear()


class Opaque(torch.Tensor):
    """A class of tensors that cannot be copied."""

    def __deepcopy__(self, memo: object) -> Opaque:
        raise NotImplementedError("no copies")


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        (lambda: torch.ones(3, 12).as_subclass(Opaque), "a Opaque"),
        (lambda: torch.ones(3, 12).to_sparse_csr(), r"a Tensor \(torch.sparse_csr\)"),
    ],
    ids=["subclass", "sparse"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_tensor_that_cannot_be_copied_is_named(weight: Callable[[], torch.Tensor], kind: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model[1].weight = nn.Parameter(weight(), requires_grad=False)
    with pytest.raises(EvaluationError, match=rf"'1.weight', {kind}, cannot .*: dequantize it"):
        prepare(model, torch.device("cpu"))
