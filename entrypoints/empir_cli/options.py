"""Options that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the full data set, as torchvision lays it out.",
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; results may differ in bits with their number."
)


def set_threads(threads: int | None) -> None:
    """Compute on that many CPU threads, or on torch's own choice, until the running command ends."""
    import torch

    if threads is not None:
        click.get_current_context().call_on_close(partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(threads)
