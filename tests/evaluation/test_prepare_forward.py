"""Networks people really bring: memory layouts, parts out of reach, types, wrappers, all tried before any attack."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.prepare import PreparedModel, prepare_for_images, unwrap
from empir_plugin.models.ensemble import Ensemble

CPU = torch.device("cpu")


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def prepare(model: nn.Module) -> PreparedModel:
    return prepare_for_images(model, CPU, images())


class Views(nn.Module):
    """A network that flattens its activations by a function of one's choice."""

    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv2d(3, 4, 5), nn.Linear(64, 10)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.flatten(F.relu(self.conv(x))))


def flatten(h: Tensor) -> Tensor:
    return h.flatten(1)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda h: h.view(h.size(0), -1),
    "view of channels": lambda h: h.view(h.size(0), 2, -1).flatten(1),
    "view_as": lambda h: h.view_as(h.new_empty(h.size(0), 64)),
    "strides": lambda h: h.as_strided((h.size(0), 64), (64, 1)),
    "in-place view": lambda h: h.mul_(1.0).view(-1, 64),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_network_that_views_its_activations_keeps_contiguous_memory(view: Callable[[Tensor], Tensor]) -> None:
    prepared = prepare(Views(view))
    assert prepared.memory_format == torch.contiguous_format
    expected = Views(flatten)(images())
    assert torch.allclose(prepared.model(images()), expected, atol=1e-6)


def test_a_network_that_works_in_channels_last_memory_gets_it() -> None:
    assert prepare(Views(flatten)).memory_format == torch.channels_last


class OnlyBackwardViews(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.view(-1).view(grad.shape)


class OnlyBackwardAsserts(OnlyBackwardViews):
    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        assert grad.is_contiguous()
        return grad


@pytest.mark.parametrize("function", [OnlyBackwardViews, OnlyBackwardAsserts])
def test_a_backward_pass_counts_too(function: type[torch.autograd.Function]) -> None:
    class Net(Views):
        def forward(self, x: Tensor) -> Tensor:
            h = function.apply(self.conv(x))
            return h.amax((2, 3))

    assert prepare(Net(flatten)).memory_format == torch.contiguous_format


def hidden_in_a_list(part: nn.Module) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [part]

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[0](x).flatten(1)

    return Net().eval()


def hidden_in_a_closure(part: nn.Module) -> nn.Module:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return part(x).flatten(1)

    return Net().eval()


class OwnNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x) if self.training else x


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(3),
    "dropout": lambda: nn.Dropout(0.5),
    "dropout within": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.Dropout2d(0.5))),
    "instance norm": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "own noise": OwnNoise,
}


@pytest.mark.parametrize("hide", [hidden_in_a_list, hidden_in_a_closure])
@pytest.mark.parametrize("part", HIDDEN.values(), ids=HIDDEN)
def test_parts_in_training_mode_that_eval_does_not_reach_are_refused(
    part: Callable[[], nn.Module], hide: Callable[[nn.Module], nn.Module]
) -> None:
    network = part()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(EvaluationError, match=r"training mode.*nn\.ModuleList"):
        prepare(hide(network))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training


@pytest.mark.parametrize("hide", [hidden_in_a_list, hidden_in_a_closure])
def test_hidden_parts_without_modes_or_in_evaluation_mode_are_fine(hide: Callable[[nn.Module], nn.Module]) -> None:
    for part in (nn.Conv2d(3, 3, 3), *(make().eval() for make in HIDDEN.values())):
        modes = [module.training for module in part.modules()]
        assert prepare(hide(part)).model(images()).shape[0] == 2
        assert [module.training for module in part.modules()] == modes


def test_a_model_that_writes_to_its_input_is_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.5).flatten(1)

    with pytest.raises(EvaluationError, match="writes to its input"):
        prepare(Net())


class Counting(nn.Module):
    """Counts its calls in a buffer, if ``when`` says so."""

    def __init__(self, when: Callable[[Tensor], bool] = lambda x: True) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.when = when

    def forward(self, x: Tensor) -> Tensor:
        self.calls += int(self.when(x))
        return x.flatten(1)


class Lazy(nn.Module):
    """Makes a buffer in its first pass."""

    def forward(self, x: Tensor) -> Tensor:
        if "mask" not in self._buffers:
            self.register_buffer("mask", torch.ones(x.shape[1:]))
        return (x * self.mask).flatten(1)


COUNTING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "always": (Counting, "calls"),
    "with gradients only": (lambda: Counting(lambda x: x.requires_grad), "calls"),
    "a part": (lambda: nn.Sequential(nn.Identity(), Counting()), r"1\.calls"),
    "in a list": (lambda: hidden_in_a_list(Counting().eval()), r"Counting\.calls"),
    "in a closure": (lambda: hidden_in_a_closure(Counting().eval()), r"Counting\.calls"),
    "a member": (lambda: Ensemble([nn.Flatten(), Counting()]), r"members\.1\.calls"),
    "a lazy buffer": (Lazy, "mask"),
}


@pytest.mark.parametrize(("make", "name"), COUNTING.values(), ids=COUNTING)
def test_state_that_a_forward_pass_changes_is_named(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(EvaluationError, match=rf"own state.*\({name}\).*in training mode only.*call the model once"):
        prepare(make())


def test_a_buffer_that_exists_already_is_fine() -> None:
    model = Lazy().eval()
    model(images())
    assert torch.equal(prepare(model).model(images()), images().flatten(1))


def test_a_forward_pass_that_leaves_evaluation_mode_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            self.dropout.train()
            return self.dropout(self.norm(x)).flatten(1)

    with pytest.raises(EvaluationError, match=r"leaves evaluation mode.*\(dropout\).*remove the call of train\(\)"):
        prepare(Net())


class Remembers(nn.Module):
    """The mean of what it was shown, in a plain attribute."""

    def __init__(self, keep: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mean, self.keep = torch.zeros(3, 1, 1), keep

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.keep(self.mean, x.mean((0, 2, 3))[:, None, None])
        return (x - self.mean).flatten(1)


class Alternates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.state = {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        self.state["calls"] += 1
        return x.flatten(1) * (-1) ** self.state["calls"]


REMEMBERING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a new tensor": (lambda: Remembers(lambda mean, new: 0.9 * mean + 0.1 * new), "mean"),
    "in place": (lambda: Remembers(lambda mean, new: mean.mul_(0.9).add_(new, alpha=0.1)), "mean"),
    "a number": (Alternates, "state"),
    "in a part": (lambda: nn.Sequential(nn.Identity(), Alternates()), "1.state"),
}


@pytest.mark.parametrize(("make", "name"), REMEMBERING.values(), ids=REMEMBERING)
def test_a_model_whose_results_depend_on_earlier_images_is_refused(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(EvaluationError, match=rf"keeps something of each \({re.escape(name)}\).*training mode"):
        prepare(make())


def test_a_model_that_only_keeps_what_it_saw_is_not() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.features = 0, torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            self.seen, self.features = self.seen + len(x), x.flatten(1)
            return self.features

    assert prepare(Net()).memory_format == torch.channels_last


class Typed(nn.Module):
    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 5).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1).to(self.linear.weight.dtype))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
def test_logits_are_float32_at_the_border(kind: torch.dtype) -> None:
    model = Typed(kind)
    prepared = prepare(model)
    logits = prepared.model(images())
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model(images()).float())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_takes_images_of_its_own_type_only_is_refused_by_type(kind: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)).to(kind)
    name = str(kind).removeprefix("torch.")
    with pytest.raises(EvaluationError, match=rf"images of {name} only.*float32.*x\.to\({kind}\).*model\.float\(\)"):
        prepare(model)


def test_autocast_inside_a_model() -> None:
    class Net(Typed):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.linear(x.flatten(1))

    assert prepare(Net(torch.float32)).model(images()).dtype == torch.float32


def test_an_ensemble_of_another_type_stays_one_for_attacks() -> None:
    ensemble = Ensemble([Typed(torch.float64), Typed(torch.float64)])
    model = prepare(ensemble).model
    assert model.member_logits(images()).dtype == torch.float32  # type: ignore[operator]
    assert len(list(model.members)) == 2  # type: ignore[arg-type]
    assert model.rule == ensemble.rule


def test_wrappers_that_only_pass_on_are_removed() -> None:
    ensemble = Ensemble([nn.Flatten(), nn.Flatten()])
    for wrapped in (
        nn.DataParallel(ensemble),
        nn.Sequential(ensemble),
        torch.compile(ensemble),
        nn.Sequential(nn.Sequential(nn.DataParallel(ensemble))),
        nn.Sequential(nn.Identity(), ensemble, nn.Identity()),
    ):
        assert unwrap(wrapped) is ensemble  # type: ignore[arg-type]
    averaged = AveragedModel(ensemble)
    assert unwrap(averaged) is averaged.module


def test_wrappers_that_do_something_are_kept() -> None:
    flatten = nn.Flatten()
    hooked = nn.Sequential(flatten)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    identity = nn.Identity()
    identity.register_forward_hook(lambda module, args, output: output * 2)
    for kept in (nn.Sequential(nn.ReLU(), flatten), hooked, flatten, nn.Sequential(identity, flatten), nn.Sequential()):
        assert unwrap(kept) is kept
