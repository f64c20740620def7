"""Description of the machine that a benchmark ran on, for its record."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from empir_plugin.evaluation.processor import processor


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor and instructions behind a device, the CPU by default; cores, load and system."""
    found = processor(device)
    return {
        "processor": found.name,
        "instructions": found.instructions,
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
    }
