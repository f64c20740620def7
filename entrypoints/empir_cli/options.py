"""Options that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the full data set, laid out as torchvision does.",
)
CHECKPOINT = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights to use instead of the model's own: safetensors, packed or plain, or a PyTorch file (.pt).",
)
EMA = click.option(
    "--ema/--no-ema", default=None, help="With --checkpoint: load the moving average in it, or the weights beside it."
)
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random in the attacks.")
DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
MOST_THREADS = 1024
"""More threads than any processor has cores; of 5,000 the system may refuse one, and end the process."""
THREADS = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    help="CPU threads; their number may change the last bits of results.",
)


def set_threads(threads: int | None) -> None:
    """Use that many CPU threads until the running command ends; None leaves torch's own choice."""
    import torch

    if threads is not None:
        click.get_current_context().call_on_close(partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(threads)
