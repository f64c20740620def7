"""Exactness of sums of integers, by kernel choice, fan-in and codes: the first part of the benchmark of GPUs.

A quantized layer adds up products of small integers. The sums stay below 2**24, so float32 holds them, but a kernel
need not add up the products themselves: Winograd's and Fourier's algorithms round on the way, and tensor cores may add
in fewer bits. Each choice is compared with the same sums in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from empir_plugin.models.integer.kernels import Float32, Geometry, IntegerOp, IntMM, Kernel, Unfolded
from empir_plugin.models.layers import EXACT_IN_FLOAT32


@dataclass(frozen=True)
class Case:
    """A convolution of integers.

    Args:
        bits: Precision whose integers these are.
        weight_top: The largest weight; the smallest is its negative.
        code_top: The largest code of the input; the smallest is 0.
        size: Rows and columns of the filters.
        channels: Of the input.
        codes: ``"top"``: all of them the largest; ``"alternating"``: the largest with weights of both signs in turn,
            so that large sums cancel; ``"random"``.
        images: Number of images.
        side: Rows and columns of an image.
        filters: Number of filters.
    """

    bits: str
    weight_top: int
    code_top: int
    size: int
    channels: int
    codes: str
    images: int = 8
    side: int = 16
    filters: int = 32

    @property
    def fan_in(self) -> int:
        """Products in a sum."""
        return self.channels * self.size**2

    def integers(self) -> tuple[Tensor, Tensor]:
        """Codes, uint8 ``(N, C, H, W)``, and weights, int8 ``(K, C, k, k)``."""
        generator = torch.Generator().manual_seed(0)
        shape, of_weights = (self.images, self.channels, self.side, self.side), (self.filters, self.channels)
        of_weights = (*of_weights, self.size, self.size)
        if self.codes == "random":
            codes = torch.randint(0, self.code_top + 1, shape, generator=generator, dtype=torch.uint8)
            low, high = -self.weight_top, self.weight_top + 1
            return codes, torch.randint(low, high, of_weights, generator=generator, dtype=torch.int8)
        codes = torch.full(shape, self.code_top, dtype=torch.uint8)
        weight = torch.full(of_weights, self.weight_top, dtype=torch.int8)
        if self.codes == "alternating":
            weight.view(-1)[1::2] *= -1
        return codes, weight

    def sums(self) -> Tensor:
        """The exact sums, float64 on the CPU."""
        codes, weight = self.integers()
        return F.conv2d(codes.double(), weight.double(), padding=self.size // 2).round()


BITS = (("w2a2", 3, 3), ("w4a4", 15, 15), ("w4a8", 15, 255))
SIZES = (1, 3, 5)
CODES = ("top", "alternating", "random")


def cases(channels: tuple[int, ...], *, bound: bool = True) -> Iterator[Case]:
    """Cases of some channels whose sums stay below 2**24; with ``bound``, those that just do as well."""
    for (bits, weight, code), size, codes in product(BITS, SIZES, CODES):
        largest = EXACT_IN_FLOAT32 // (weight * code * size**2) // 8 * 8
        for number in channels:
            if number <= largest:
                yield Case(bits, weight, code, size, number, codes)
        if bound:
            yield Case(bits, weight, code, size, largest, codes, images=1, side=4, filters=8)


@dataclass(frozen=True)
class Choice:
    """A way to compute the sums on a device.

    Args:
        kernel: Makes a function of codes from an operation with a scale of one.
        tf32: Whether TF32 is allowed.
        benchmark: Whether cuDNN tries its algorithms and takes the fastest.
        deterministic: Whether cuDNN must be deterministic.
        largest: The largest code that it takes.
        on_cpu: Whether the choice exists on the CPU.
    """

    kernel: Kernel
    tf32: bool = False
    benchmark: bool = False
    deterministic: bool = False
    largest: int = 255
    on_cpu: bool = False

    @contextmanager
    def switches(self) -> Iterator[None]:
        """Set PyTorch's switches inside the block."""
        matmul: Any = torch.backends.cuda.matmul
        before = matmul.allow_tf32
        cudnn: Any = torch.backends.cudnn
        how = {"benchmark": self.benchmark, "deterministic": self.deterministic, "allow_tf32": self.tf32}
        try:
            with cudnn.flags(enabled=True, **how):
                matmul.allow_tf32 = self.tf32
                yield
        finally:
            matmul.allow_tf32 = before

    def unusable(self, device: torch.device) -> str:
        """Why the choice does not exist on a device; empty if it does."""
        if device.type == "cpu" and not self.on_cpu:
            return "a choice of GPUs only"
        return self.kernel.unusable(device) or ""

    def run(self, case: Case, device: torch.device) -> Tensor:
        """The sums ``(N, K, H, W)`` on a device."""
        codes, weight = (integers.to(device) for integers in case.integers())
        padding = case.size // 2, case.size // 2
        op = IntegerOp(weight, 0, torch.ones(len(weight), device=device), None, Geometry((1, 1), padding, (1, 1), 1))
        with torch.no_grad(), self.switches():
            return self.kernel.compile(op)(codes)


@dataclass(frozen=True)
class Bfloat16:
    """Matrix products of unfolded images with operands in bfloat16, which holds integers to 256, and float32 sums.

    It computes the convolutions of a :class:`Case` only.
    """

    name: str = "bfloat16, unfolded"

    def unusable(self, device: torch.device) -> str | None:
        """Reject devices and releases without such a product."""
        square = torch.zeros(8, 8, device=device, dtype=torch.bfloat16)
        try:
            _product_in_float32(square, square)
        except (TypeError, RuntimeError, NotImplementedError) as error:
            return f"no bfloat16 product with float32 sums: {str(error).splitlines()[0].partition('. ')[0]}"
        return None

    def compile(self, op: IntegerOp) -> Callable[[Tensor], Tensor]:
        """Convert the weights to a matrix."""
        matrix = op.weight.flatten(1).bfloat16()
        size = op.weight.shape[2]

        def program(codes: Tensor) -> Tensor:
            patches = F.unfold(codes.bfloat16(), size, padding=size // 2)
            flat = patches.transpose(1, 2).flatten(0, 1)  # (N * H * W, fan-in)
            sums = _product_in_float32(flat, matrix.t())
            return sums.view(len(codes), *codes.shape[2:], -1).permute(0, 3, 1, 2)

        return program


def _product_in_float32(x: Tensor, matrix: Tensor) -> Tensor:
    multiply: Any = torch.mm
    return multiply(x, matrix, out_dtype=torch.float32)


CHOICES: Mapping[str, Choice] = {
    "convolution": Choice(Float32(), on_cpu=True),
    "convolution, cudnn.benchmark": Choice(Float32(), benchmark=True),
    "convolution, deterministic": Choice(Float32(), deterministic=True),
    "convolution, TF32": Choice(Float32(), tf32=True),
    "convolution, TF32, cudnn.benchmark": Choice(Float32(), tf32=True, benchmark=True),
    "unfolded": Choice(Unfolded(), on_cpu=True),
    "unfolded, TF32": Choice(Unfolded(), tf32=True),
    "unfolded, bfloat16": Choice(Bfloat16(), on_cpu=True),
    "torch._int_mm": Choice(IntMM(), largest=127, on_cpu=True),
}


def compare(
    chosen: Mapping[str, Choice], todo: list[Case], device: torch.device, *, in_time: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Compare all choices with exact sums, ready for JSON.

    Args:
        chosen: Kernel choices by name.
        todo: The cases.
        device: Where the choices run.
        in_time: Whether another case may start.
    """
    reasons = {name: choice.unusable(device) for name, choice in chosen.items()}
    rows, skipped = [], 0
    for case in todo:
        if not in_time():
            skipped += 1
            continue
        exact = case.sums()
        results = {
            name: _difference(choice, case, exact, device)
            for name, choice in chosen.items()
            if not reasons[name] and case.code_top <= choice.largest
        }
        about = {**asdict(case), "fan_in": case.fan_in, "largest_sum": int(exact.abs().max())}
        rows.append({"case": about, "outputs": exact.numel(), "results": results})
    left_out = {name: reason for name, reason in reasons.items() if reason}
    ran = [name for name in chosen if name not in left_out]
    return {
        "summary": {name: _summary(name, rows) for name in ran},
        "left_out": left_out,
        "cases_without_time": skipped,
        "rows": rows,
    }


def _difference(choice: Choice, case: Case, exact: Tensor, device: torch.device) -> dict[str, Any]:
    """How many sums are wrong, and by how much; the error where the device refuses a case."""
    try:
        found = choice.run(case, device).cpu().double()
    except RuntimeError as error:  # such as memory
        return {"error": str(error).splitlines()[0]}
    gap = (found - exact).abs()
    return {"wrong": int((gap != 0).sum()), "largest_error": gap.max().item()}


def _summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    tried = [row for row in rows if "wrong" in row["results"].get(name, {})]
    wrong = [row for row in tried if row["results"][name]["wrong"]]
    return {
        "cases": len(tried),
        "inexact_cases": len(wrong),
        "smallest_inexact_fan_in": min((row["case"]["fan_in"] for row in wrong), default=None),
        "largest_error": max((row["results"][name]["largest_error"] for row in tried), default=None),
        "errors": sum("error" in row["results"].get(name, {}) for row in rows),
    }
