"""Agreement of the ways to run quantized networks: ``python benchmarks/integer_agreement.py --data-dir DIR``.

Compares the logits of shipped networks on the test set, image by image and bit for bit, between memory layouts, numbers
of threads, bfloat16 math and int8 kernels. It also compares every sum of every quantized layer with float64, and names
the operations in floating point whose results depend on layout or threads: only after these may logits differ.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import torch
from integer_forms import FLOAT32, FORMS, Form, exact_sums, threads
from machine import machine
from torch import Tensor, fx, nn

import empir_plugin
from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import EmpirError
from empir_plugin.evaluation.identity import code_sha256, now, versions
from empir_plugin.models.integer.fold import Tracer
from empir_plugin.models.layers import QuantizedLayer, quantized_layers

NETWORKS = (
    "cifarconv-w2a2",
    "cifarconv-w4a2",
    "cifarconv-at-w4a4",
    "cifarconv-at-w4a4-b",
    "wrn-10-1-w4a4",
    "wrn-10-1-w2a2",
)


@dataclass(frozen=True)
class Gap:
    """Difference between the logits of two forms of a network.

    Args:
        images: N.
        differing_images: Images with a logit that differs in any bit.
        differing_decisions: Images with different decisions.
        max_logit_difference: The largest difference between two logits.
    """

    images: int
    differing_images: int
    differing_decisions: int
    max_logit_difference: float

    @classmethod
    def between(cls, one: Tensor, other: Tensor) -> Gap:
        """Compare two forms' logits ``(N, K)``.

        Example:
            >>> Gap.between(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.5]]))
            Gap(images=1, differing_images=1, differing_decisions=1, max_logit_difference=1.5)
        """
        gaps = (one.double() - other.double()).abs().amax(1)
        decisions = int((one.argmax(1) != other.argmax(1)).sum())
        return cls(len(one), int((one != other).any(1).sum()), decisions, gaps.max().item())

    def __str__(self) -> str:
        logits = f"logits of {self.differing_images} of {self.images} images differ"
        return f"{logits} (by at most {self.max_logit_difference:.2g}), {self.differing_decisions} decisions"


@torch.no_grad()
def gaps(model: nn.Module, forms: Mapping[str, Form], images: Tensor, batch_size: int) -> dict[tuple[str, str], Gap]:
    """Compare every pair of forms of a network on images ``(N, C, H, W)``."""
    logits = {}
    for name, form in forms.items():
        network = form.network(model)
        logits[name] = torch.cat([form.logits(network, batch) for batch in images.split(batch_size)])
    return {pair: Gap.between(*(logits[name] for name in pair)) for pair in combinations(forms, 2)}


@torch.no_grad()
def sums(model: nn.Module, forms: Mapping[str, Form], images: Tensor, batch_size: int) -> list[dict[str, Any]]:
    """For each quantized layer, the number of its sums, and of those that differ from float64's in each form.

    All forms get the same inputs of a layer: those that it has in the form :data:`FLOAT32`.
    """
    network = Form().network(model)
    layers = {layer: name for name, layer in quantized_layers(network)}
    counts = {name: Counter[str]() for name in layers.values()}
    for batch in images.split(batch_size):
        for layer, x in _inputs(network, layers, batch.contiguous(memory_format=torch.channels_last)):
            _count_sums(counts[layers[layer]], layer, x, forms)
    return [_row(name, count, forms) for name, count in counts.items()]


def _row(name: str, count: Counter[str], forms: Mapping[str, Form]) -> dict[str, Any]:
    wrong = {form: count[form] for form in forms} if count["sums"] else {}
    return {"layer": name, "sums": count["sums"], "wrong": wrong}


def _count_sums(count: Counter[str], layer: QuantizedLayer, x: Tensor, forms: Mapping[str, Form]) -> None:
    exact = exact_sums(layer, x)
    if exact is None:
        return
    count["sums"] += exact.numel()
    for name, form in forms.items():
        found = form.sums(layer, x)
        if found is not None:
            count[name] += int((found.double() != exact).sum())


def _inputs(
    network: nn.Module, layers: Mapping[QuantizedLayer, str], images: Tensor
) -> list[tuple[QuantizedLayer, Tensor]]:
    """The input of every quantized layer in one pass."""
    found: list[tuple[QuantizedLayer, Tensor]] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: found.append((module, args[0].clone())))
        for layer in layers
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Differing(fx.Interpreter):
    """Runs a network, and every operation of it once more in another form on the same inputs."""

    def __init__(self, network: nn.Module, other: nn.Module, form: Form) -> None:
        super().__init__(fx.GraphModule(network, Tracer().trace(network)))
        self.other, self.form, self.names = other, form, set[str]()

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        copies = tuple(self._moved(x) for x in args)
        found = super().run_node(n)
        if n.op in ("call_function", "call_method", "call_module"):
            with threads(self.form.threads):
                again = self._run_other(n, copies, kwargs)
            if isinstance(found, Tensor) and not torch.equal(found, again):
                self.names.add(_describe(n, self.module))
        return found

    def _moved(self, x: Any) -> Any:
        return x.clone(memory_format=self.form.layout) if isinstance(x, Tensor) and x.dim() == 4 else x

    def _run_other(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if n.op == "call_module":
            return self.other.get_submodule(str(n.target))(*args, **kwargs)
        return getattr(self, n.op)(n.target, args, kwargs)


def _describe(node: fx.Node, network: nn.Module) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(network.get_submodule(str(node.target))).__name__})"
    return node.name


@torch.no_grad()
def differing_operations(model: nn.Module, forms: Mapping[str, Form], images: Tensor) -> dict[str, list[str]]:
    """For each form in float32, the operations that differ from those of :data:`FLOAT32` on the same inputs."""
    found = {}
    for name, form in forms.items():
        if not (form.int8 or name == FLOAT32):
            run = _Differing(Form().network(model), form.network(model), form)
            run.run(images.contiguous(memory_format=torch.channels_last))
            found[name] = sorted(run.names)
    return found


def usable() -> Iterator[tuple[str, Form, str]]:
    """The forms, each with the reason why it cannot run here, which is empty if it can."""
    for name, form in FORMS.items():
        yield name, form, form.unusable()


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of CIFAR-10; by default its bundled images.")
@click.option("--model", "chosen", multiple=True, help="Only this (repeatable).")
@click.option("--n-examples", type=click.IntRange(1), help="Only the first images; by default all.")
@click.option("--batch-size", type=click.IntRange(1), default=200, show_default=True, help="Images per forward pass.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for all measurements.")
def main(
    data_dir: Path | None, chosen: tuple[str, ...], n_examples: int | None, batch_size: int, out: Path | None
) -> None:
    """Compare the forms of quantized networks, image by image and sum by sum."""
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    try:
        images = empir_plugin.load_images("cifar10", data_dir=data_dir).as_float()[:n_examples]
    except EmpirError as error:
        raise click.ClickException(str(error)) from error
    forms = {name: form for name, form, reason in usable() if not reason}
    left_out = {name: reason for name, _, reason in usable() if reason}
    settings = {"images": len(images), "batch_size": batch_size}
    about = {**versions(), "code_sha256": code_sha256()}
    report: dict[str, Any] = {"machine": machine(), "versions": about, "settings": settings, "left_out": left_out}
    report["models"] = {}
    for name, reason in left_out.items():
        click.echo(f"{name} is left out: {reason}")
    for name in chosen or NETWORKS:
        report["models"][name] = _compare(name, forms, images, batch_size)
        if out is not None:
            content = json.dumps({**report, "finished": now()}, indent=1)
            write_atomically(out, f"{content}\n".encode())


def _compare(name: str, forms: Mapping[str, Form], images: Tensor, batch_size: int) -> dict[str, Any]:
    """Measure one network, print what is found, and return it for JSON."""
    start = time.perf_counter()
    model = empir_plugin.load_model(name, dataset="cifar10")
    operations = differing_operations(model, forms, images[:batch_size])
    found = gaps(model, forms, images, batch_size)
    for pair, gap in found.items():
        click.echo(f"{name}: {' / '.join(pair)}: {gap}")
    for form, names in operations.items():
        click.echo(f"{name}: {form}: operations that differ: {', '.join(names) or 'none'}")
    layers = sums(model, forms, images, batch_size)
    wrong = {form: sum(layer["wrong"].get(form, 0) for layer in layers) for form in forms}
    click.echo(f"{name}: {sum(layer['sums'] for layer in layers):,} sums, of which wrong: {wrong}")
    click.echo(f"{name}: {time.perf_counter() - start:.0f} s")
    return {
        "logits": [{"between": pair, **asdict(gap)} for pair, gap in found.items()],
        "sums": layers,
        "differing_operations": operations,
    }


if __name__ == "__main__":
    main()
