"""Progress of AutoAttack: parts, batches and restarts in order, broken images at once, work that only rises."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from empir_plugin.attacks import suite_progress
from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.suite_progress import SuiteProgress
from empir_plugin.attacks.threat import Threat

THREAT = Threat.parse("Linf:0.05")


def model_and_images(n: int = 6) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A linear network; the first half of the images lies near the boundary, the second half far from it."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(27, 5)).eval()
    x = torch.rand(n, 3, 3, 3, generator=generator)
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(5, 27, generator=generator))
        network[1].bias.zero_()
    return network, x, network(x).argmax(1)


def reports(suite: AutoAttackSuite) -> tuple[list[SuiteProgress], torch.Tensor]:
    network, x, y = model_and_images()
    told: list[SuiteProgress] = []
    result = suite.run(network, x, y, THREAT, on_progress=told.append)
    return told, result.robust[suite.parts[-1]]


@pytest.fixture(scope="module")
def standard() -> tuple[list[SuiteProgress], torch.Tensor]:
    return reports(AutoAttackSuite(queries=20, batch_size=2))


def test_every_part_batch_and_restart_is_reported_in_order(
    standard: tuple[list[SuiteProgress], torch.Tensor],
) -> None:
    told, robust = standard
    assert 0 < robust.sum() < 6, "some images must be broken, and some not"
    pattern = re.compile(r"([\w-]+): part (\d)/4, batch (\d)/(\d), restart (\d+)/(\d+)")
    places = [match.groups() for each in told if (match := pattern.fullmatch(each.note))]
    assert len(places) == len(told)
    assert list(dict.fromkeys(name for name, *_ in places)) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    numbers = [(int(part), int(batch), int(run)) for _, part, batch, _, run, _ in places]
    assert numbers == sorted(numbers)
    assert {(part, int(runs)) for part, *_, runs in places} == {
        ("apgd-ce", 1), ("apgd-t", 4), ("fab-t", 4), ("square", 1)
    }  # fmt: skip
    assert {batches for part, _, _, batches, *_ in places if part == "apgd-ce"} == {"3"}


def test_broken_images_are_finished_at_once_and_the_share_of_the_others_rises(
    standard: tuple[list[SuiteProgress], torch.Tensor],
) -> None:
    told, robust = standard
    finished = [each.finished for each in told]
    assert finished == sorted(finished)
    assert finished[-1] == 6 - int(robust.sum())
    of_the_others = [(each.work - each.finished) / (6 - each.finished) for each in told]
    assert of_the_others == sorted(of_the_others)
    assert all(0 <= share <= 1 for share in of_the_others)
    assert of_the_others[-1] > 0.9


def test_watching_changes_no_verdict(standard: tuple[list[SuiteProgress], torch.Tensor]) -> None:
    network, x, y = model_and_images()
    unwatched = AutoAttackSuite(queries=20, batch_size=2).run(network, x, y, THREAT)
    assert torch.equal(unwatched.robust["square"], standard[1])


def test_a_single_part_goes_from_none_to_all_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_progress, "_INTERVAL", 0.0)  # Report every call of the model.
    told, _ = reports(AutoAttackSuite(attacks=("apgd-ce",)))
    assert told[0].work == 0
    assert told[0].note == "apgd-ce: part 1/1, batch 1/1, restart 1/1"
    assert told[-1].work > 0.7 * 6
