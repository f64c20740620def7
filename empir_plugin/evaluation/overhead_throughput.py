"""Throughputs for Equation 6 of EMPIR: the proportional one that reproduces the paper, and published ones.

The equation divides operations per second at full precision by those at k bits. The paper gives no throughput, so every
use of the equation has to name one. All published numbers are peaks without sparsity, for the operands named.
"""

from __future__ import annotations

from dataclasses import dataclass

from empir_plugin.errors import InputError


@dataclass(frozen=True)
class Throughput:
    """How fast a platform computes at full precision and at few bits.

    Args:
        platform: Its name.
        fp_baseline: The format that counts as full precision.
        full: Peak at that format, in 10**12 operations per second (or any unit that ``modes`` shares).
        modes: Bits of each integer format, and the peak at it.
        source: Where the numbers are from.

    Raises:
        InputError: If a throughput is not above 0.

    Example:
        >>> Throughput("an accelerator", "fp32", 10.0, ((8, 40.0), (4, 80.0)), "made up").relative_time(2)
        0.125
    """

    platform: str
    fp_baseline: str
    full: float
    modes: tuple[tuple[int, float], ...]
    source: str

    def __post_init__(self) -> None:
        if not all(speed > 0 for speed in (self.full, *(speed for _, speed in self.modes))):
            raise InputError(f"throughputs must be above 0, got {self.full} and {self.modes} for {self.platform}")

    def relative_time(self, bits: int) -> float:
        """Time of an operation on operands of ``bits`` bits, in times of one at full precision.

        It runs in the fastest integer format that holds so many bits, and at full precision where none is faster.
        """
        return min([1.0, *(self.full / speed for width, speed in self.modes if width >= bits)])


PROPORTIONAL = Throughput(
    "proportional to 32/k",
    "fp32",
    1.0,
    tuple((bits, 32 / bits) for bits in range(1, 9)),
    "an assumption: the paper names no throughput, and this one gives the 0.38 and 0.25 of its Section 5.4",
)
"""A k-bit operation takes k/32 of the time of a 32-bit one."""

_TURING = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
_GEFORCE = "https://www.tomshardware.com/reviews/nvidia-turing-gpu-architecture-explored,5801-10.html"
_AMPERE = "https://developer.nvidia.com/blog/nvidia-ampere-architecture-in-depth/"
_HOPPER = "https://www.nvidia.com/en-us/data-center/h200/, halved, as it counts sparsity; Hopper has no 4-bit format"
_IBM = (
    "Fleischer et al., VLSI 2018, https://doi.org/10.1109/VLSIC.2018.8502276; its 2-bit format is ternary, "
    "so DoReFa's four levels would not quite fit"
)

PUBLISHED = (
    Throughput("NVIDIA T4", "fp32", 8.1, ((8, 130.0), (4, 260.0)), _TURING),
    Throughput("NVIDIA T4", "fp16", 65.0, ((8, 130.0), (4, 260.0)), _TURING),
    Throughput("NVIDIA RTX 2080 Ti", "fp32", 14.2, ((8, 227.7), (4, 455.4)), _GEFORCE),
    Throughput("NVIDIA RTX 2080 Ti", "fp16", 113.8, ((8, 227.7), (4, 455.4)), _GEFORCE),
    Throughput("NVIDIA A100", "fp32", 19.5, ((8, 624.0), (4, 1248.0)), _AMPERE),
    Throughput("NVIDIA A100", "tf32", 156.0, ((8, 624.0), (4, 1248.0)), _AMPERE),
    Throughput("NVIDIA H200", "fp32", 67.0, ((8, 1979.0),), _HOPPER),
    Throughput("NVIDIA H200", "tf32", 494.7, ((8, 1979.0),), _HOPPER),
    Throughput("NVIDIA H200", "bf16", 989.4, ((8, 1979.0),), _HOPPER),
    Throughput("IBM core of 2018", "fp16", 1.5, ((2, 12.0), (1, 24.0)), _IBM),
)
"""Published peaks; the answer of Equation 6 depends mostly on which format counts as full precision."""
