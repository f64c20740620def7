"""What a record warns of: decisions that depend on the batch, zero gradients, parts left out, members not reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import (
    AutoAttackSuite,
    CarliniWagner,
    OnMember,
    Threat,
    Transfer,
    bim,
    fgsm,
    pgd,
    uniform_noise,
)
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.audit.run import audit
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.protocols import Protocol, adaptive, default, standard
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.models.ensemble import Ensemble

THREAT = Threat.parse("Linf:8/255")


def run(model: nn.Module, data: ImageSet, attacks: dict[str, object] | None = None, **settings: int) -> Record:
    specs = [AttackSpec(name, attack) for name, attack in (attacks or {"FGSM": fgsm()}).items()]  # type: ignore[arg-type]
    return evaluate(model, data, THREAT, specs, settings=Settings(**settings))  # type: ignore[arg-type]


def shaded(toys: ModuleType, n: int = 40) -> ImageSet:
    """Images of different brightness, so that batches differ in their statistics."""
    data = toys.noise_images(n)
    shades = torch.linspace(0.1, 1.0, n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return replace(data, images=(data.images * shades.view(-1, 1, 1, 1)).to(torch.uint8))


class Brightness(nn.Module):
    """Is an image brighter than zero, which behind a normalisation is the mean of the batch?"""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, -mean, torch.full_like(mean, -5)], 1)


class InBatch(nn.Module):
    """A network behind a normalisation by the statistics of the batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, track_running_stats=False)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.norm(x))


class Centred(nn.Module):
    """The same by hand, over a sorted batch: nothing that a look at the modules would find."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x - x.mean(0).sort().values)


@pytest.mark.parametrize("wrap", [InBatch, Centred])
def test_decisions_that_depend_on_the_batch_are_flagged(toys: ModuleType, wrap: type[nn.Module]) -> None:
    record = run(wrap(Brightness()), shaded(toys), batch_size=8, shard_size=20)
    (flag,) = (flag for flag in record.flags if "other images of the batch" in flag)
    assert record.run["batch_dependent"] > 2
    assert f"{record.run['batch_dependent']} of 40" in flag


def test_decisions_of_an_ordinary_network_are_not(toys: ModuleType) -> None:
    record = run(toys.network(), toys.noise_images(), batch_size=8, shard_size=20)
    assert record.flags == ()
    assert record.run["batch_dependent"] == 0


class Apart(nn.Module):
    """Classes at a fixed distance, so that no statistics of a batch change a decision, but all logits."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean + 0.1, mean, mean - 0.1], 1)


@pytest.mark.parametrize("n", [2, 3, 20])
@pytest.mark.parametrize("batch_size", [1, 2, 250])
@pytest.mark.parametrize("wrap", [InBatch, Centred])
def test_outputs_that_depend_on_the_batch_are_flagged_though_no_decision_changes(
    toys: ModuleType, wrap: type[nn.Module], batch_size: int, n: int
) -> None:
    data = replace(shaded(toys, n), labels=torch.zeros(n, dtype=torch.int64))
    record = run(wrap(Apart()), data, batch_size=batch_size)
    assert record.clean == "1" * n
    (flag,) = record.flags
    assert f"the output for {record.run['batch_dependent']} of {n}" in flag
    assert record.run["batch_dependent"] > n / 2
    assert run(Apart(), data, batch_size=batch_size).flags == ()


class Shared(nn.Module):
    """One scale for the images of a batch, as quantizers have that are calibrated at every pass."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.amax() / 3
        return Apart()((x / scale).round() * scale)


def test_a_model_that_cannot_take_a_single_image_is_refused(toys: ModuleType) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, track_running_stats=False), nn.Linear(36, 3))
    with pytest.raises(EvaluationError, match=r"a batch of 16 images.*not a single one.*statistics"):
        run(model, toys.noise_images())


def test_a_scale_shared_by_the_batch_is_flagged(toys: ModuleType) -> None:
    data = replace(shaded(toys), labels=torch.zeros(40, dtype=torch.int64))
    (flag,) = run(Shared(), data).flags
    assert "other images of the batch" in flag


def test_rounding_in_half_precision_is_not(toys: ModuleType) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = toys.network().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            # Rounding that depends on the size of the batch, as kernels for half precision have it.
            return self.network((x * (1 + 2**-9 * (len(x) % 3))).bfloat16())

    assert run(Half(), toys.noise_images(), batch_size=8).flags == ()


def test_the_audit_has_the_check_too(toys: ModuleType) -> None:
    model, data = InBatch(Brightness()), shaded(toys, 80)
    decided = model(data.as_float()).argmax(1)
    data = replace(data, labels=decided)
    found = {check.name: check for check in audit(model, data, THREAT, settings=Settings(batch_size=8)).checks}
    assert not found["batch dependence"].passed
    assert found["batch dependence"].value > found["batch dependence"].threshold
    assert {check.name: check for check in audit(toys.network(), toys.noise_images(60), THREAT).checks}[
        "batch dependence"
    ].passed


class Rounded(nn.Module):
    """Images in steps of 1/255, whose gradient is zero everywhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 255).round() / 255)


@pytest.mark.parametrize(
    "attack", [fgsm(), bim(5), pgd(5), CarliniWagner(iterations=5, search_steps=1)], ids=["fgsm", "bim", "pgd", "cw"]
)
def test_every_gradient_attack_flags_gradients_of_exactly_zero(toys: ModuleType, attack: object) -> None:
    data = toys.noise_images()
    masked, plain = (run(model, data, {"attack": attack}) for model in (Rounded(toys.network()), toys.network()))
    correct = plain.clean.count("1")
    (flag,) = masked.attacks[0].flags
    assert f"exactly zero for {correct} of {correct} attacked images (100.0%)" in flag
    assert plain.attacks[0].flags == ()


def test_the_gradient_of_a_member_counts_where_a_member_is_attacked(toys: ModuleType) -> None:
    ensemble = Ensemble([Rounded(toys.network()), toys.network(), toys.network()])
    data = toys.noise_images()
    record = run(ensemble, data, {str(index): OnMember(index, pgd(3)) for index in (0, 1)})
    assert [len(attack.flags) for attack in record.attacks] == [1, 0]


@pytest.mark.parametrize("int8", [False, True])
def test_the_gradient_of_the_source_counts_where_images_are_transferred(toys: ModuleType, int8: bool) -> None:
    sources = {"masked": Rounded(toys.network(1)), "plain": toys.network(1)}
    record = run(toys.network(), toys.noise_images(), {n: Transfer(s, bim(2)) for n, s in sources.items()}, int8=int8)
    masked, plain = record.attacks
    attacked = record.clean.count("1")
    assert f"exactly zero for {attacked} of {attacked}" in masked.flags[0]
    assert plain.flags == ()


def test_some_images_only(toys: ModuleType) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.amax((1, 2, 3)) > 0.98
            return torch.where(flat[:, None], network(x).detach() + 0 * x.sum(), network(x))

    network = toys.network()
    (flag,) = run(Half(), toys.noise_images(), {"PGD": pgd(1)}).attacks[0].flags
    zero, attacked = (int(word) for word in flag.split(" attacked")[0].split("zero for ")[1].split(" of "))
    assert 0 < zero < attacked


def test_attacks_without_gradients_say_nothing(toys: ModuleType) -> None:
    suite = AutoAttackSuite(attacks=("square",), queries=5)
    record = run(Rounded(toys.network()), toys.noise_images(), {"noise": uniform_noise(2), "Square": suite})
    assert not any("exactly zero" in flag for attack in record.attacks for flag in attack.flags)


def few_classes(classes: int) -> tuple[nn.Module, ImageSet]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).eval()
        images = torch.randint(0, 256, (24, 3, 4, 4), dtype=torch.uint8)
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(1)
    return model, ImageSet("toy", "test", images, labels, tuple("abcdefgh"[:classes]))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("protocol", [default, standard, adaptive], ids=lambda protocol: protocol.name)
def test_few_classes_leave_out_only_what_is_not_defined(classes: int, protocol: object) -> None:
    model, data = few_classes(classes)
    record = evaluate(model, data, THREAT, protocol=protocol)  # type: ignore[arg-type]
    attack = next(attack for attack in record.attacks if attack.name == "AutoAttack")
    assert [part.name for part in attack.parts] == ["clean", "apgd-ce", "fab-t", "square"]
    assert any("apgd-t needs at least 4 classes" in flag for flag in attack.flags)
    assert f"apgd-t needs at least 4 classes, got {classes}" in attack.rules
    assert attack.kind == "autoattack"


def test_few_classes_leave_out_attacks_of_a_protocol_of_which_nothing_is_defined() -> None:
    model, data = few_classes(2)
    specs = AttackSpec("FGSM", fgsm()), AttackSpec("targeted", AutoAttackSuite(attacks=("apgd-t",)))
    toy = Protocol("toy", "One step, and targets.", (), lambda model, dataset: specs)
    record = evaluate(model, data, THREAT, protocol=toy)
    assert [attack.name for attack in record.attacks] == ["FGSM"]
    (flag,) = record.flags
    assert "2 classes" in flag
    assert flag.endswith(": targeted")
    about = 2, (3, 4, 4), THREAT
    of_ensembles = adaptive.attacks(Ensemble([model, model]))
    assert [spec.name for spec in of_ensembles if not spec.is_defined_on(*about)] == ["apgd-t mean_logits"]


def test_a_protocol_of_which_nothing_is_defined_is_refused() -> None:
    _, data = few_classes(2)
    one = replace(data, labels=torch.zeros_like(data.labels), class_names=("a",))
    with pytest.raises(InputError, match=r"AutoAttack cannot run.*at least 2 classes, got 1"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(48, 1)), one, THREAT, protocol=standard)


def test_four_classes_leave_out_nothing() -> None:
    model, data = few_classes(4)
    record = evaluate(model, data, THREAT, protocol=standard)
    assert [part.name for part in record.attacks[0].parts] == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert record.attacks[0].kind == "autoattack-standard"


def test_an_attack_of_which_nothing_is_defined_is_refused_before_anything_runs() -> None:
    model, data = few_classes(2)
    ran: list[str] = []
    specs = [AttackSpec("FGSM", fgsm()), AttackSpec("targeted", AutoAttackSuite(attacks=("apgd-t",)))]
    with pytest.raises(InputError, match=r"targeted.*4 classes, got 2"):
        evaluate(model, data, THREAT, specs, on_progress=lambda each: ran.append(each.title))
    assert ran == []


@pytest.mark.parametrize("shape", [(3, 1, 64), (3, 2, 2), (1, 4, 9)], ids=str)
def test_square_under_l2_on_images_of_few_rows(shape: tuple[int, int, int]) -> None:
    pixels = torch.randint(0, 256, (6, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].numel(), 5)).eval()
    data = ImageSet("toy", "test", pixels, model(pixels / 255).argmax(1), tuple("abcde"))
    record = evaluate(model, data, Threat.parse("L2:0.5"), protocol=standard)
    assert [part.name for part in record.attacks[0].parts] == ["clean", "apgd-ce", "apgd-t", "fab-t"]
    assert any(f"square needs images of at least 5 rows under L2, got {shape[1]}" in f for f in record.attacks[0].flags)
    with pytest.raises(InputError, match=f"square needs.*5 rows.*{shape[1]}"):
        AutoAttackSuite().run(model, data.as_float(), data.labels, Threat.parse("L2:0.5"))
    whole = evaluate(model, data, THREAT, protocol=standard)
    assert [part.name for part in whole.attacks[0].parts][-1] == "square"


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 1.0)


def test_an_ensemble_inside_a_wrapper(toys: ModuleType) -> None:
    ensemble, data = Ensemble([toys.network(), toys.network(1), toys.network(2)]), toys.noise_images(12)
    names = [attack.name for attack in evaluate(ensemble, data, THREAT).attacks]
    assert "PGD-100 mean_probability" in names
    for wrapped in (nn.DataParallel(ensemble), nn.Sequential(ensemble)):
        record = evaluate(wrapped, data, THREAT)
        assert [attack.name for attack in record.attacks] == names
        assert record.flags == ()
    (flag,) = evaluate(Around(ensemble), data, THREAT).flags
    assert "Around" in flag
    assert "members were not reached" in flag


class Listed(nn.Module):
    """Holds an ensemble where modules() does not find it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = [inner]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](x)


@pytest.mark.parametrize(
    "around",
    [Listed, lambda inner: Ensemble([inner, inner]), lambda inner: nn.Sequential(nn.ReLU(), inner)],
    ids=["list", "ensemble", "sequence"],
)
def test_an_ensemble_out_of_reach_is_flagged_in_records_and_audits(
    toys: ModuleType, around: Callable[[nn.Module], nn.Module]
) -> None:
    ensemble = Ensemble([toys.network(), toys.network(1)]).eval()
    model, data = around(ensemble), toys.noise_images(40)
    data = replace(data, labels=model(data.as_float()).argmax(1))
    for flags in (evaluate(model, data, THREAT).flags, audit(model, data, THREAT).flags):
        assert len([flag for flag in flags if "members were not reached" in flag]) == 1
    for flags in (evaluate(ensemble, data, THREAT).flags, audit(ensemble, data, THREAT).flags):
        assert not [flag for flag in flags if "members were not reached" in flag]
