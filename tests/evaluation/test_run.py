"""Evaluations: known answers, no cheating, nothing lost by a kill, and the same bits every time."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from empir_plugin.attacks import AutoAttackSuite, Threat, Transfer, bim, fgsm, pgd, uniform_noise
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation import run as run_module
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.queries import Queries
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.models.integer import convert as integer
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.precision import Precision

THREAT = Threat.parse("Linf:8/255")
DIFFERENCES = [1, 7, 9, 20, -1, -7, -9, -20, 3, -12]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
CLEAN, ROBUST = "1111111100", "0011001100"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


@dataclass(frozen=True)
class Does:
    """An attack that is any function of model, images and labels."""

    what: Callable[..., object]

    def __call__(self, model: Any, x: Tensor, y: Tensor, threat: Threat, **rest: object) -> Any:
        return self.what(model, x, y)


def verdicts(record: Record) -> tuple[object, ...]:
    columns = [(attack.name, attack.robust, attack.accuracy, attack.flags, attack.parts) for attack in record.attacks]
    return record.clean, record.worst_case, columns


def run(toys: ModuleType, attacks: Any, **rest: Any) -> Record:
    data = toys.pairs(DIFFERENCES, LABELS)
    plan = [AttackSpec(name, attack) for name, attack in attacks.items()] if isinstance(attacks, dict) else attacks
    return evaluate(toys.Compare(), data, THREAT, plan, **{"settings": Settings(shard_size=4, batch_size=3), **rest})


# Known answers.


def test_an_image_falls_exactly_when_its_distance_is_within_the_budget(toys: ModuleType) -> None:
    record = run(toys, {"FGSM": fgsm(), "PGD": pgd(10), "noise": uniform_noise()})
    assert record.clean == CLEAN
    assert [attack.robust for attack in record.attacks[:2]] == [ROBUST, ROBUST]
    assert record.worst_case == ROBUST
    assert (record.clean_accuracy, record.worst_case_accuracy) == (80.0, 40.0)
    assert set(record.attacks[2].robust) == {"0", "1"}


def test_the_worst_case_is_taken_image_by_image(toys: ModuleType) -> None:
    left = Does(darken_left)
    right = Does(darken_right)
    record = run(toys, {"left": left, "right": right})
    assert [attack.robust for attack in record.attacks] == ["0011111100", "1111001100"]
    assert [attack.accuracy for attack in record.attacks] == [60.0, 60.0]
    assert record.worst_case == ROBUST


def darken_left(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x + torch.tensor([-7.9, 7.9]).view(1, 1, 1, 2) / 255


def darken_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x + torch.tensor([7.9, -7.9]).view(1, 1, 1, 2) / 255


def test_only_images_classified_correctly_are_attacked_unless_all_are_asked_for(toys: ModuleType) -> None:
    record = run(
        toys, [AttackSpec("right", Does(darken_right)), AttackSpec("right, all", Does(darken_right), attack_all=True)]
    )
    assert record.attacks[0].robust == "1111001100"
    # Image 9 is wrong without an attack, with which it comes back right: -12 + 2 * 7.9 > 0 is not, 3 stays wrong.
    assert record.attacks[1].robust == "1111001100"
    record = run(toys, [AttackSpec("left, all", Does(darken_left), attack_all=True)])
    assert record.attacks[0].robust == "0011111110"
    assert record.worst_case == "0011111100"


def test_own_labels_are_the_models_clean_decisions(toys: ModuleType) -> None:
    plan = [AttackSpec("own", fgsm(), labels=Labels.OWN, attack_all=True), AttackSpec("true", fgsm(), attack_all=True)]
    record = run(toys, plan)
    # Image 8 is wrong: pushed away from its wrong class it becomes right, pushed away from its true one it stays wrong.
    assert [attack.robust[8:] for attack in record.attacks] == ["10", "00"]


def test_an_attack_without_a_budget_is_no_part_of_the_worst_case(toys: ModuleType) -> None:
    far = AttackSpec("far", Does(lambda_free_invert), threat=Threat.parse("L2:inf"))
    record = run(toys, [far, AttackSpec("FGSM", fgsm())])
    assert record.attacks[0].robust == "0" * 10
    assert not record.attacks[0].in_worst_case
    assert record.worst_case == ROBUST
    assert record.attacks[0].threat == "L2:inf"


def test_a_larger_budget_is_no_part_of_the_worst_case_and_a_smaller_one_is(toys: ModuleType) -> None:
    large = AttackSpec("large", fgsm(), threat=Threat.parse("Linf:0.5"))
    small = AttackSpec("small", fgsm(), threat=Threat.parse("Linf:4/255"))
    record = run(toys, [large, small])
    assert [attack.in_worst_case for attack in record.attacks] == [False, True]
    assert record.worst_case == record.attacks[1].robust != record.attacks[0].robust


def test_no_batch_of_autoattack_is_larger_than_asked_for(toys: ModuleType) -> None:
    suite = AutoAttackSuite(attacks=("apgd-ce",), batch_size=16)
    for asked, got in ((4, 4), (250, 16)):
        record = run(toys, {"AutoAttack": suite}, settings=Settings(batch_size=asked))
        assert f"batch_size={got}," in record.attacks[0].settings


def lambda_free_invert(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 1 - x


def test_batches_of_a_prescribed_size_keep_the_order(toys: ModuleType) -> None:
    seen: list[int] = []

    def noting(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    planned = AttackSpec("together", Does(noting), attack_all=True, batch_size=2)
    run(toys, [planned])
    assert seen == [2, 2, 2, 2, 2]
    with pytest.raises(InputError, match="multiple of 2, got 5"):
        run(toys, [planned], settings=Settings(shard_size=5))


def test_autoattack_reports_its_parts_and_warnings(toys: ModuleType) -> None:
    suite = AutoAttackSuite(attacks=("apgd-ce", "square"), queries=10)
    record = run(toys, {"AutoAttack": suite})
    (attack,) = record.attacks
    assert [part.name for part in attack.parts] == ["clean", "apgd-ce", "square"]
    assert attack.parts[0].robust == CLEAN
    assert attack.parts[-1].robust == attack.robust == ROBUST
    # Masked gradients: the white-box part is blind, the black-box part is not.
    blind = nn.Sequential(Rounded(), toys.Compare())
    record = evaluate(
        blind, toys.pairs(DIFFERENCES, LABELS), THREAT, [AttackSpec("AutoAttack", suite)], settings=SHARDED
    )
    (attack,) = record.attacks
    squares = [flag for flag in attack.flags if flag.startswith("Square Attack")]
    assert len(squares) == 1
    left = [part.accuracy for part in attack.parts]
    assert f"{left[1] - left[2]:.2f}%" in squares[0]


SHARDED = Settings(shard_size=4)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 255).round() / 255


# Nobody is believed.


def too_far(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (x + 9 / 255).clamp(0, 1)


def outside(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x - 1


def not_a_number(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x * math.nan


def too_few(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x[:-1]


def nothing(model: nn.Module, x: Tensor, y: Tensor) -> None:
    return None


def in_place(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x.copy_(1 - x)


def new_weights(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        next(model.parameters()).zero_()
    return x


def new_weights_behind_the_back(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    next(model.parameters()).data.add_(0.5)
    return x


def train_mode(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.train()
    return x


def raising(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    raise ZeroDivisionError("by design\nand more")


@pytest.mark.parametrize(
    ("cheat", "sentence"),
    [
        (too_far, "left its budget"), (outside, "left"), (not_a_number, "NaN"), (too_few, "must return images like"),
        (nothing, "got a NoneType"), (in_place, "left its budget"), (new_weights, "changed the model"),
        (new_weights_behind_the_back, "changed the model"), (train_mode, "changed the model"),
        (raising, "failed on .* with ZeroDivisionError: by design$"),
    ],
)  # fmt: skip
def test_cheating_is_caught_and_located(toys: ModuleType, cheat: Callable[..., object], sentence: str) -> None:
    data = toys.noise_images()
    with pytest.raises(EvaluationError, match=sentence) as caught:
        evaluate(toys.network(), data, THREAT, [AttackSpec("cheat", Does(cheat))], settings=Settings(shard_size=16))
    assert "cheat" in str(caught.value)
    assert "shard 0 (images 0 to 15)" in str(caught.value)


def relabelling(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    y.zero_()
    return x.add_(0)


def test_labels_are_the_judges_own(toys: ModuleType) -> None:
    assert run(toys, {"relabelling": Does(relabelling)}).worst_case == CLEAN


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (nn.Softmax(1), "leave its softmax out"),
        (nn.Linear(3, 7), "another data set"),
        (nn.Threshold(1e9, math.nan), "NaN"),
        (nn.Unflatten(1, (3, 1)), "one row per image"),
    ],
)
def test_models_that_return_no_logits_are_refused(toys: ModuleType, output: nn.Module, sentence: str) -> None:
    model = nn.Sequential(toys.Compare(), output)
    with pytest.raises(EvaluationError, match=rf"the clean images, shard 0 .*{sentence}"):
        evaluate(model, toys.pairs(DIFFERENCES, LABELS), THREAT, [])


def test_what_was_finished_before_an_error_is_kept(toys: ModuleType, tmp_path: Path) -> None:
    plan = [AttackSpec("FGSM", fgsm()), AttackSpec("raising", Does(raising))]
    with pytest.raises(EvaluationError, match="raising failed on shard 0"):
        run(toys, plan, store=tmp_path)
    stored = len(list(tmp_path.glob("*/*.json")))
    assert stored == 3 + 3
    run(toys, plan[:1], store=tmp_path)
    assert len(list(tmp_path.glob("*/*.json"))) == stored


def test_settings_that_make_no_sense_are_refused(toys: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shard_size"):
        Settings(shard_size=0)
    with pytest.raises(InputError, match="batch_size"):
        Settings(batch_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="different names"):
        run(toys, [AttackSpec("a", fgsm()), AttackSpec("a", pgd())])
    with pytest.raises(InputError, match="different names"):
        run(toys, [AttackSpec("clean", fgsm())])
    with pytest.raises(InputError, match="pass one"):
        run(toys, {}, images=tmp_path / "images.safetensors")
    with pytest.raises(InputError, match="no name"):
        run(toys, {"nameless": Does(lambda model, x, y: x)}, store=tmp_path)
    assert run(toys, {"nameless": Does(lambda model, x, y: x)}).worst_case == CLEAN


# Nothing is left behind, and nothing depends on what it should not.


def test_model_and_process_are_left_as_they_were(toys: ModuleType) -> None:
    model = toys.network().train()
    model[0].weight.requires_grad_(False)
    name, state = model_fingerprint(model), torch.get_rng_state()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    evaluate(model, toys.noise_images(), THREAT, [AttackSpec("PGD", pgd(2)), AttackSpec("noise", uniform_noise())])
    assert model_fingerprint(model) == name
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert model[0].weight.is_contiguous()
    assert torch.equal(torch.get_rng_state(), state)
    assert calls  # hooks travel with the copy


def uses_global_randomness(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (x + (torch.rand_like(x) - 0.5) * 16 / 255).clamp(0, 1)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(toys: ModuleType) -> None:
    data = toys.pairs(list(range(-20, 20)), [0] * 40)
    plan = [AttackSpec("noise", uniform_noise()), AttackSpec("global", Does(uses_global_randomness))]

    def column(seed: int) -> Any:
        settings = Settings(seed=seed, shard_size=16)
        return verdicts(evaluate(toys.Compare(), data, THREAT, plan, settings=settings))

    torch.manual_seed(1)
    first = column(0)
    torch.manual_seed(2)
    assert column(0) == first
    others = [column(seed) for seed in range(1, 6)]
    assert {other[2][0] for other in others} - {first[2][0]}
    assert {other[2][1] for other in others} - {first[2][1]}


def test_columns_do_not_know_of_each_other(toys: ModuleType) -> None:
    plan = [AttackSpec("noise", uniform_noise()), AttackSpec("FGSM", fgsm()), AttackSpec("PGD", pgd(4))]
    data = toys.noise_images()
    together = evaluate(toys.network(), data, THREAT, plan)
    backwards = evaluate(toys.network(), data, THREAT, plan[::-1])
    alone = [evaluate(toys.network(), data, THREAT, [planned]).attacks[0].robust for planned in plan]
    assert [attack.robust for attack in together.attacks] == alone
    assert [attack.robust for attack in backwards.attacks] == alone[::-1]
    assert together.worst_case == backwards.worst_case


@pytest.mark.parametrize(("shard_size", "batch_size"), [(40, 40), (1, 1), (7, 3), (100, 250)])
def test_verdicts_do_not_depend_on_how_images_are_cut(toys: ModuleType, shard_size: int, batch_size: int) -> None:
    data = toys.pairs(list(range(-20, 20)), [0] * 40)
    plan = [AttackSpec("noise", uniform_noise(2)), AttackSpec("PGD", pgd(4))]
    cut = Settings(shard_size=shard_size, batch_size=batch_size)
    assert verdicts(evaluate(toys.Compare(), data, THREAT, plan, settings=cut)) == verdicts(
        evaluate(toys.Compare(), data, THREAT, plan)
    )


def test_a_cascade_has_the_same_worst_case(toys: ModuleType) -> None:
    data = toys.noise_images()
    plan = [
        AttackSpec("noise", uniform_noise(5)),
        AttackSpec("all", bim(1), attack_all=True),
        AttackSpec("FGSM", fgsm()),
        AttackSpec("PGD", pgd(10)),
    ]
    independent = evaluate(toys.network(), data, THREAT, plan, settings=Settings(shard_size=16))
    cascade = evaluate(toys.network(), data, THREAT, plan, settings=Settings(shard_size=16, cascade=True))
    assert cascade.worst_case == independent.worst_case
    assert cascade.attacks[0].robust == independent.attacks[0].robust
    assert cascade.attacks[1].robust == independent.attacks[1].robust
    left = [attack.robust.count("1") for attack in (cascade.attacks[0], *cascade.attacks[2:])]
    assert left == sorted(left, reverse=True)
    assert independent.run["cascade"] is False
    assert cascade.run["cascade"] is True


def test_progress_counts_every_image_once(toys: ModuleType) -> None:
    told: list[tuple[str, int, int]] = []
    run(
        toys,
        {"FGSM": fgsm(), "AutoAttack": AutoAttackSuite(attacks=("apgd-ce",))},
        on_progress=lambda *a: told.append(a),
    )
    for title in ("clean", "FGSM", "AutoAttack"):
        done = [images for name, images, total in told if name == title and total == 10]
        assert done == sorted(done)
        assert done[-1] == 10
    assert told[0][0] == "clean"
    assert [name for name, images, _ in told if images == 0] == ["FGSM", "AutoAttack"]


def test_a_record_names_model_data_and_how_it_was_run(toys: ModuleType) -> None:
    record = run(toys, {"FGSM": fgsm()}, name="toy")
    assert record.model == {
        "name": "toy", "sha256": model_fingerprint(toys.Compare()), "identity": 2, "weights_loaded": True
    }  # fmt: skip
    assert record.data["n"] == 10
    assert record.run["threads"] == [1]
    assert record.run["processes"] == 1
    assert record.attacks[0].settings.startswith("GradientAttack(steps=1")
    assert record.protocol["name"] == "custom"
    source = toys.Compare()
    moved = run(toys, {"transfer": Transfer(source, bim(2))})
    assert "Compare(sha256:" in moved.attacks[0].settings


def test_the_adversarial_images_are_those_that_break_the_model(toys: ModuleType, tmp_path: Path) -> None:
    path, data, model = tmp_path / "out" / "images.safetensors", toys.noise_images(), toys.network()
    plan = [AttackSpec("noise", uniform_noise()), AttackSpec("PGD", pgd(10))]
    for _ in range(2):  # computed, then from the store
        record = evaluate(model, data, THREAT, plan, settings=SHARDED, store=tmp_path / "store", images=path)
    tensors = safetensors.torch.load_file(path)
    assert torch.equal(tensors["labels"], data.labels)
    assert tensors["images"].dtype == torch.float32
    with torch.no_grad():
        right = model(tensors["images"]).argmax(1) == data.labels
    assert "".join("1" if ok else "0" for ok in right) == record.worst_case
    changed = (tensors["images"] - data.as_float()).abs().amax((1, 2, 3))
    assert changed.max() <= 8 / 255 + 1e-7
    untouched = [i for i in range(len(data)) if record.clean[i] == record.worst_case[i]]
    assert changed[untouched].max() == 0


# A copy on integers.


ASKING = [
    AttackSpec("noise", uniform_noise(5)),
    AttackSpec("PGD", pgd(4)),
    AttackSpec("Square", AutoAttackSuite(attacks=("square",), queries=20)),
]


@pytest.fixture
def quantized() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        conv = QuantConv2d(1, 4, 3, precision=Precision.parse("w2a4"))
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.fixture
def images(toys: ModuleType, quantized: nn.Module) -> ImageSet:
    data = toys.noise_images(24)
    with torch.no_grad():
        labels = quantized(data.as_float()).argmax(1)
    labels[::5] = (labels[::5] + 1) % 3
    return replace(data, labels=labels)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that every machine has."""
    monkeypatch.setattr(integer, "kernel_for", lambda device: IntMM())


INT8 = replace(SHARDED, int8=True, shard_size=12)
FLOAT = replace(INT8, int8=False)
WEAK = Threat.parse("Linf:0.02")


@pytest.mark.usefixtures("everywhere")
def test_a_copy_on_integers_gives_the_same_verdicts_and_the_record_names_it(
    quantized: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    exact = evaluate(quantized, images, WEAK, ASKING, settings=FLOAT, store=tmp_path)
    stored = len(list(tmp_path.glob("*/*.json")))
    record = evaluate(quantized, images, WEAK, ASKING, settings=INT8, store=tmp_path)
    assert verdicts(record) == verdicts(exact)
    assert 0 < record.worst_case.count("1") < record.clean.count("1") < 24
    assert record.run["backend"] == {"verdicts": "float32", "queries": "int8 (int_mm)", "reason": ""}
    assert exact.run["backend"] == {"verdicts": "float32", "queries": "float32", "reason": ""}
    assert len(list(tmp_path.glob("*/*.json"))) == 2 * stored, "no shard of one kind is taken for the other"


class Lying(nn.Module):
    """Gives the true class of every image, which it finds by its nearest neighbour, the lowest logit."""

    def __init__(self, data: ImageSet) -> None:
        super().__init__()
        self.images, self.labels, self.asked = data.as_float().flatten(1), data.labels, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        nearest = torch.cdist(x.flatten(1), self.images).argmin(1)
        return -5 * nn.functional.one_hot(self.labels[nearest], 3).float()


def test_a_copy_that_lies_cannot_make_an_image_fall(
    quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying = Lying(images)
    monkeypatch.setattr(run_module, "integer_queries", lambda model, x: Queries("int8 (lies)", lying))
    told = evaluate(quantized, images, WEAK, ASKING, settings=INT8)
    assert lying.asked > 3 * len(images)
    assert verdicts(told) == verdicts(evaluate(quantized, images, WEAK, ASKING, settings=FLOAT))


def test_without_kernels_float32_is_used_and_the_record_says_why(
    quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    record = evaluate(quantized, images, WEAK, ASKING[:1], settings=INT8)
    assert record.run["backend"]["queries"] == "float32"
    assert "lacks oneDNN's int8 kernels" in record.run["backend"]["reason"]
    assert verdicts(record) == verdicts(evaluate(quantized, images, WEAK, ASKING[:1], settings=FLOAT))


@pytest.mark.usefixtures("everywhere")
def test_where_decisions_differ_float32_is_used(
    quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer, "agree", lambda *_: integer.Agreement(1e-6, 1e-7, 1, 24))
    record = evaluate(quantized, images, WEAK, ASKING[:1], settings=INT8)
    assert record.run["backend"]["queries"] == "float32"
    assert record.run["backend"]["reason"] == "on integers, 1 of 24 decisions differ"


@dataclass(frozen=True)
class Meddling:
    """An attack that says it only asks, and changes the mode."""

    queries_only: bool = True

    def __call__(self, model: Any, x: Tensor, y: Tensor, threat: Threat, **rest: Any) -> Tensor:
        model.train()
        return x


@pytest.mark.usefixtures("everywhere")
def test_the_copy_may_not_be_changed_either(quantized: nn.Module, images: ImageSet) -> None:
    with pytest.raises(EvaluationError, match="changed the model"):
        evaluate(quantized, images, WEAK, [AttackSpec("meddling", Meddling())], settings=INT8)


def test_what_returns_no_logits_is_told_as_ever(images: ImageSet) -> None:
    low = QuantConv2d(1, 3, 6, precision=Precision.parse("w2a4"))
    with pytest.raises(EvaluationError, match="must return logits of shape"):
        evaluate(low, images, WEAK, [], settings=INT8)


# Killed and resumed.


def evaluated(toys: ModuleType, store: Path | None, **rest: Any) -> Record:
    settings = replace(toys.SETTINGS, batch_size=8)
    return evaluate(toys.network(), toys.noise_images(), THREAT, toys.PLAN, settings=settings, store=store, **rest)


def forked(action: Callable[[], object]) -> int:
    """Run an action in a child process and return its number."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def die_at(call: str, number: int) -> None:
    """Have this process killed, as from outside, when it makes a system call for the n-th time."""
    original, count = getattr(os, call), iter(range(1_000_000))

    def counted(*args: Any) -> Any:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(os, call, counted)


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("call", "number"), [("replace", n) for n in (0, 4, 5, 9, 14)] + [("fsync", 13), ("open", 20)])
def test_a_kill_at_any_write_costs_only_the_shard_at_hand(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    whole = evaluated(toys, None)

    def child() -> None:
        die_at(call, number)
        evaluated(toys, tmp_path)

    _, status = os.waitpid(forked(child), 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    stored = len(list(tmp_path.glob("*/*.json")))
    if call == "replace":
        assert stored == number
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("TOY_LOG", str(log))
    resumed = evaluated(toys, tmp_path)
    assert verdicts(resumed) == verdicts(whole)
    # 5 shards: the first 5 files are of the clean images, then one call of an attack for each shard.
    assert len(log.read_text().split()) == 10 - max(0, stored - 5)
    assert len(list(tmp_path.glob("*/*.json"))) == 15
    assert not list(tmp_path.glob("*/.*"))


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kill_9_from_outside_and_two_processes_on_one_store(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("TOY_LOG", str(log))
    monkeypatch.setenv("TOY_STALL", "7")
    pid = forked(lambda: evaluated(toys, tmp_path))
    try:
        wait_for(lambda: len(log.read_text().split()) == 7)
        monkeypatch.delenv("TOY_STALL")
        with pytest.raises(EvaluationError, match="another evaluation of this model on this data"):
            evaluated(toys, tmp_path)
        other = toys.network(seed=1)
        evaluate(other, toys.noise_images(), THREAT, [], settings=toys.SETTINGS, store=tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    log.write_text("")
    assert verdicts(evaluated(toys, tmp_path)) == verdicts(evaluated(toys, None))
    assert log.read_text().split()[:4] == ["8", "16", "24", "32"]  # 6 of 10 were finished; then the run without a store


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_finished_evaluation_computes_nothing_again(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated(toys, tmp_path)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    told: list[Any] = []
    again = evaluated(toys, tmp_path, on_progress=lambda *a: told.append(a))
    assert verdicts(again) == verdicts(first)
    assert [attack.seconds for attack in again.attacks] == [attack.seconds for attack in first.attacks]
    assert not (tmp_path / "log").exists()
    assert ("PGD", 40, 40) in told


@pytest.mark.parametrize("what", ["model", "labels", "images", "threat", "seed", "attack", "shard", "batch"])
def test_results_of_anything_else_are_never_used(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    evaluated(toys, tmp_path)
    model, data, threat, plan, settings = toys.network(), toys.noise_images(), THREAT, toys.PLAN, toys.SETTINGS
    settings = replace(settings, batch_size=8)
    match what:
        case "model":
            model[3].bias.data[0] += 1e-6
        case "labels":
            labels = data.labels.clone()
            labels[::2] = (labels[::2] + 1) % 3
            data = replace(data, labels=labels)
        case "images":
            data = replace(data, images=data.images.flip(3))
        case "threat":
            threat = Threat.parse("Linf:7/255")
        case "seed":
            settings = replace(settings, seed=4)
        case "attack":
            plan = [replace(planned, attack=toys.Logged(replace(planned.attack.attack, steps=7))) for planned in plan]
        case "shard":
            settings = replace(settings, shard_size=16)
        case "batch":
            settings = replace(settings, batch_size=4)
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("TOY_LOG", str(log))
    record = evaluate(model, data, threat, plan, settings=settings, store=tmp_path)
    assert log.read_text().split(), "attacked again"
    monkeypatch.delenv("TOY_LOG")
    assert verdicts(record) == verdicts(evaluate(model, data, threat, plan, settings=settings))


def test_shards_of_the_first_images_serve_a_run_on_all_of_them(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, log = toys.noise_images(), tmp_path / "log"
    settings = replace(toys.SETTINGS, batch_size=8)
    evaluate(toys.network(), data.first(20), THREAT, toys.PLAN, settings=settings, store=tmp_path)
    monkeypatch.setenv("TOY_LOG", str(log))
    whole = evaluated(toys, tmp_path)
    first_images = {int(line) for line in log.read_text().split()}
    assert min(first_images) >= 16, "images 0 to 15 are two whole shards, the third was a smaller one"
    monkeypatch.delenv("TOY_LOG")
    assert verdicts(whole) == verdicts(evaluated(toys, None))


def test_a_damaged_shard_is_named_and_computed_again(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated(toys, tmp_path)
    path = sorted(tmp_path.glob("*/00002-*.json"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=path.name):
        assert verdicts(evaluated(toys, tmp_path)) == verdicts(first)
    assert verdicts(evaluated(toys, tmp_path)) == verdicts(first)


def test_a_store_that_cannot_be_written_is_told_before_any_attack(toys: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    told: list[Any] = []
    with pytest.raises(EvaluationError, match="choose another store"):
        evaluated(toys, tmp_path / "store", on_progress=lambda *a: told.append(a))
    assert not told


def test_a_disk_that_fills_up_keeps_finished_shards(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = os.replace, iter(range(100))

    def filling(*args: Any) -> None:
        if next(count) >= 8:
            raise OSError(28, "No space left on device")
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", filling)
        with pytest.raises(EvaluationError, match=r"No space left on device.*run again"):
            evaluated(toys, tmp_path)
    assert len(list(tmp_path.glob("*/*.json"))) == 8
    assert verdicts(evaluated(toys, tmp_path)) == verdicts(evaluated(toys, None))


@pytest.mark.slow
@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ten_thousand_cifar_images_stay_under_two_gigabytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    data = ImageSet("toy", "test", images, torch.randint(0, 10, (10_000,), generator=generator), tuple("abcdefghij"))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 225, 10))
    plan = [AttackSpec("FGSM", fgsm(), attack_all=True), AttackSpec("PGD", pgd(2), attack_all=True)]

    def child() -> None:
        evaluate(model, data, THREAT, plan, store=tmp_path / "store", images=tmp_path / "images.safetensors")

    _, status, usage = os.wait4(forked(child), 0)
    assert status == 0
    assert usage.ru_maxrss * 1024 < 2e9
