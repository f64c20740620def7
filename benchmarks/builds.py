"""Compare this build with an older one: ``OMP_NUM_THREADS=1 python benchmarks/builds.py CHECKOUT``.

CHECKOUT is a folder with another commit of this repository. Every case runs in processes of its own, interleaved:

- a step of PGD on ResNet-18's ensemble (full precision, w4a4, w2a2) while no image falls, in processor time, with
  float32 and with bf16 gradients;
- standard AutoAttack by ``empir evaluate``: processor time, and the peak of the process's memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

HERE = Path(__file__).parent.parent
STEPS = 5
BATCH = 64
TARGETS = {"step, float32 gradients": 0.75, "step, bf16 gradients": 0.55, "AutoAttack, peak memory": 0.8}
"""Upper limits of the ratios on processors that multiply bytes (VNNI or AMX)."""


@click.command()
@click.argument("checkout", type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds of the steps.")
@click.option("--model", default="empir-cifar-at", show_default=True, help="Model for AutoAttack.")
@click.option("--n-images", type=click.IntRange(1), default=64, show_default=True, help="Images for AutoAttack.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for all measurements.")
def main(checkout: Path, rounds: int, model: str, n_images: int, out: Path | None) -> None:
    """Time this build against CHECKOUT, an older one."""
    from attacks import machine

    from empir_plugin._files.atomic import write_atomically
    from empir_plugin.evaluation.identity import code_sha256, now, versions

    if not (checkout / "empir_plugin").is_dir():
        raise click.ClickException(f"{checkout} is no checkout of this repository: clone it and check out a commit")
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    before = {"before": checkout.resolve()}
    steps = time_steps({**before, "float32": HERE, "bf16": HERE}, rounds)
    runs = {name: autoattack(root, model, n_images) for name, root in {**before, "after": HERE}.items()}
    ratios = {
        "step, float32 gradients": _ratio(steps["float32"], steps["before"]),
        "step, bf16 gradients": _ratio(steps["bf16"], steps["before"]),
        "AutoAttack, processor time": runs["after"]["cpu_seconds"] / runs["before"]["cpu_seconds"],
        "AutoAttack, peak memory": runs["after"]["peak_mb"] / runs["before"]["peak_mb"],
    }
    report = {
        "machine": machine(),
        "versions": {**versions(), "code_sha256": code_sha256(), "before": _commit(checkout)},
        "settings": {"threads": 1, "rounds": rounds, "batch_size": BATCH, "model": model, "n_images": n_images},
        "steps_ms": {name: [round(1000 * s, 2) for s in seconds] for name, seconds in steps.items()},
        "autoattack": runs,
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "targets": {name: {"at_most": most, "met": ratios[name] <= most} for name, most in TARGETS.items()},
        "finished": now(),
    }
    for name, ratio in ratios.items():
        target = (
            f"  target {TARGETS[name]:g} {'met' if ratio <= TARGETS[name] else 'missed'}" if name in TARGETS else ""
        )
        click.echo(f"{name:28} {ratio:.3f}{target}")
    if out is not None:
        write_atomically(out, f"{json.dumps(report, indent=1)}\n".encode())


def _ratio(after: list[float], before: list[float]) -> float:
    """Median over the rounds of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(after, before, strict=True))


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _environment(root: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(root), str(root / "entrypoints")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def time_steps(roots: dict[str, Path], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of a step in every round, by name of the mode."""
    seconds: dict[str, list[float]] = {name: [] for name in roots}
    for _ in range(rounds):
        for name, root in roots.items():
            command = [sys.executable, __file__, "--worker", name, str(root)]
            done = subprocess.run(command, env=_environment(root), capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout))
    return seconds


def step_in_this_process(mode: str, root: str) -> float:
    """Median processor seconds of a step; ``mode`` is ``before``, or the type of the gradients."""
    sys.path.insert(0, f"{root}/benchmarks")
    import torch
    import torch.nn.functional as F
    from integer_networks import resnet18

    from empir_plugin.models.ensemble import Ensemble

    torch.set_num_threads(1)
    ensemble = Ensemble([resnet18(text, 64) for text in ("w2a2", "w4a4", "fp")])
    x = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x, y = x.contiguous(memory_format=torch.channels_last), torch.arange(BATCH) % 10
    model: Any
    if mode == "before":
        model = _prepare_before(ensemble)
    else:
        from empir_plugin.evaluation.prepare import prepare
        from empir_plugin.models.integer.convert import run_on_integers

        model, _ = run_on_integers(prepare(ensemble, torch.device("cpu")), x[:4], gradients=mode)

    def step() -> float:
        start, images = time.process_time(), x.clone().requires_grad_(True)
        torch.autograd.grad(F.nll_loss(model(images), y, reduction="sum"), images)
        return time.process_time() - start

    step()
    return statistics.median(step() for _ in range(STEPS))


def _prepare_before(ensemble: Any) -> Any:
    import torch

    try:
        from empir_plugin.evaluation.prepare import prepare
    except ImportError:  # the name it had before
        from empir_plugin.evaluation.subject import prepared as prepare  # type: ignore[import-not-found, no-redef]
    return prepare(ensemble, torch.device("cpu"))


def autoattack(root: Path, model: str, n_images: int) -> dict[str, Any]:
    """Standard AutoAttack by the command line of a build: processor seconds, peak memory, robust accuracy."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from empir_cli import main; main()", "evaluate", model]
        command += ["--protocol", "standard", "--n-examples", str(n_images), "--threads", "1", "--json"]
        record = Path(folder) / "record.json"
        with record.open("w") as out:
            process = subprocess.Popen(command, cwd=folder, env=_environment(root), stdout=out)
            _, status, used = os.wait4(process.pid, 0)
        if status:
            raise click.ClickException(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)} in {root}")
        found = json.loads(record.read_text())
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024, 1),
        "robust_accuracy": found["worst_case_accuracy"],
        "verdicts": found["worst_case"],
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.stdout.write(f"{step_in_this_process(*sys.argv[2:])}\n")
    else:
        main()
