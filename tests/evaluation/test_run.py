"""Evaluations: known answers, no cheating, nothing lost by a kill, and the same bits every time."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from empir_plugin.attacks import AutoAttackSuite, Threat, Transfer, bim, fgsm, pgd, uniform_noise
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate

THREAT = Threat.parse("Linf:8/255")
DIFFERENCES = [1, 7, 9, 20, -1, -7, -9, -20, 3, -12]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
CLEAN, ROBUST = "1111111100", "0011001100"

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def run(toys: ModuleType, attacks: Any, **rest: Any) -> Record:
    data = toys.pairs(DIFFERENCES, LABELS)
    plan = [AttackSpec(name, attack) for name, attack in attacks.items()] if isinstance(attacks, dict) else attacks
    return evaluate(toys.Compare(), data, THREAT, plan, **{"settings": Settings(shard_size=4, batch_size=3), **rest})


# Known answers.


def test_an_image_is_broken_exactly_when_its_distance_is_within_the_budget(toys: ModuleType) -> None:
    record = run(toys, {"FGSM": fgsm(), "PGD": pgd(10), "noise": uniform_noise()})
    assert record.clean == CLEAN
    assert [attack.robust for attack in record.attacks[:2]] == [ROBUST, ROBUST]
    assert record.worst_case == ROBUST
    assert (record.clean_accuracy, record.worst_case_accuracy) == (80.0, 40.0)
    assert set(record.attacks[2].robust) == {"0", "1"}


def test_the_worst_case_is_taken_image_by_image(toys: ModuleType) -> None:
    left = toys.Does(darken_left)
    right = toys.Does(darken_right)
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
        toys,
        [
            AttackSpec("right", toys.Does(darken_right)),
            AttackSpec("right, all", toys.Does(darken_right), attack_all=True),
        ],
    )
    assert record.attacks[0].robust == "1111001100"
    # Image 9 is wrong without an attack, with which it comes back right: -12 + 2 * 7.9 > 0 is not, 3 stays wrong.
    assert record.attacks[1].robust == "1111001100"
    record = run(toys, [AttackSpec("left, all", toys.Does(darken_left), attack_all=True)])
    assert record.attacks[0].robust == "0011111110"
    assert record.worst_case == "0011111100"


def test_own_labels_are_the_models_clean_decisions(toys: ModuleType) -> None:
    plan = [AttackSpec("own", fgsm(), labels=Labels.OWN, attack_all=True), AttackSpec("true", fgsm(), attack_all=True)]
    record = run(toys, plan)
    # Image 8 is wrong: pushed away from its wrong class it becomes right, pushed away from its true one it stays wrong.
    assert [attack.robust[8:] for attack in record.attacks] == ["10", "00"]


def test_an_attack_without_a_budget_does_not_count_in_the_worst_case(toys: ModuleType) -> None:
    far = AttackSpec("far", toys.Does(invert), threat=Threat.parse("L2:inf"))
    record = run(toys, [far, AttackSpec("FGSM", fgsm())])
    assert record.attacks[0].robust == "0" * 10
    assert not record.attacks[0].in_worst_case
    assert record.worst_case == ROBUST
    assert record.attacks[0].threat == "L2:inf"


def test_a_larger_budget_does_not_count_in_the_worst_case_and_a_smaller_one_does(toys: ModuleType) -> None:
    large = AttackSpec("large", fgsm(), threat=Threat.parse("Linf:0.5"))
    small = AttackSpec("small", fgsm(), threat=Threat.parse("Linf:4/255"))
    record = run(toys, [large, small])
    assert [attack.in_worst_case for attack in record.attacks] == [False, True]
    assert record.worst_case == record.attacks[1].robust != record.attacks[0].robust


def test_autoattack_has_no_larger_batches_than_asked_for(toys: ModuleType) -> None:
    suite = AutoAttackSuite(attacks=("apgd-ce",), batch_size=16)
    for asked, got in ((4, 4), (250, 16)):
        record = run(toys, {"AutoAttack": suite}, settings=Settings(batch_size=asked))
        assert f"batch_size={got}," in record.attacks[0].settings


def invert(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 1 - x


def test_batches_of_a_prescribed_size_keep_the_order(toys: ModuleType) -> None:
    seen: list[int] = []

    def noting(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    planned = AttackSpec("together", toys.Does(noting), attack_all=True, batch_size=2)
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


def raising(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    raise ZeroDivisionError("by design\nand more")


def test_what_was_finished_before_an_error_is_kept(toys: ModuleType, tmp_path: Path) -> None:
    plan = [AttackSpec("FGSM", fgsm()), AttackSpec("raising", toys.Does(raising))]
    with pytest.raises(EvaluationError, match="raising failed on shard 0"):
        run(toys, plan, store=tmp_path)
    stored = len(list(tmp_path.glob("*/*.json")))
    assert stored == 3 + 3
    run(toys, plan[:1], store=tmp_path)
    assert len(list(tmp_path.glob("*/*.json"))) == stored


def test_impossible_settings_are_refused(toys: ModuleType, tmp_path: Path) -> None:
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
        run(toys, {"nameless": toys.Does(lambda model, x, y: x)}, store=tmp_path)
    assert run(toys, {"nameless": toys.Does(lambda model, x, y: x)}).worst_case == CLEAN


# Nothing is left behind, and nothing depends on what it should not.


def test_model_and_process_are_left_as_they_were(toys: ModuleType) -> None:
    model = toys.network().train()
    model[0].weight.requires_grad_(False)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    name, state = model_fingerprint(model), torch.get_rng_state()
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
    plan = [AttackSpec("noise", uniform_noise()), AttackSpec("global", toys.Does(uses_global_randomness))]

    def column(seed: int) -> Any:
        settings = Settings(seed=seed, shard_size=16)
        return toys.verdicts(evaluate(toys.Compare(), data, THREAT, plan, settings=settings))

    torch.manual_seed(1)
    first = column(0)
    torch.manual_seed(2)
    assert column(0) == first
    others = [column(seed) for seed in range(1, 6)]
    assert {other[2][0] for other in others} - {first[2][0]}
    assert {other[2][1] for other in others} - {first[2][1]}


def test_attacks_do_not_depend_on_each_other(toys: ModuleType) -> None:
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
    assert toys.verdicts(evaluate(toys.Compare(), data, THREAT, plan, settings=cut)) == toys.verdicts(
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
        on_progress=lambda each: told.append((each.title, each.done, each.total)),
    )
    for title in ("clean", "FGSM", "AutoAttack"):
        done = [images for name, images, total in told if name == title and total == 10]
        assert done == sorted(done)
        assert done[-1] == 10
    assert told[0][0] == "clean"
    assert list(dict.fromkeys(name for name, images, _ in told if images == 0)) == ["FGSM", "AutoAttack"]


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


def test_few_frames_lie_between_evaluate_and_an_attack(toys: ModuleType) -> None:
    """`empir evaluate` is one frame more: 7 in all, including the attack itself."""
    stacks: list[list[str]] = []

    def look(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        stack = inspect.stack()
        first = next(i for i, frame in enumerate(stack) if frame.function == "evaluate")
        stacks.append([frame.function for frame in stack[1 : first + 1]])
        return x

    run(toys, {"look": toys.Does(look)})
    assert set(map(len, stacks)) == {6}, stacks[0]
    assert stacks[0][0] == "__call__"
    assert stacks[0][-1] == "evaluate"
