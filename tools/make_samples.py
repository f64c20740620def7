"""Make the bundled samples from the official test sets. The same version of Pillow gives the same bytes.

Usage, with this package installed: python tools/make_samples.py DATA_DIR [OUT_DIR]

DATA_DIR holds ``MNIST/raw`` and ``cifar-10-batches-py``. OUT_DIR is by default the folder the package reads. The script
prints the SHA-256 of each file: copy it to ``empir_plugin/data/readers.py``.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import click
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from empir_plugin.data.image_set import ImageSet

SAMPLES = Path(__file__).resolve().parents[1] / "empir_plugin" / "data" / "samples"
COUNT = 1000


def sheet(data: ImageSet) -> bytes:
    """The images of a set side by side in one PNG, with the labels in the text chunk ``labels``."""
    from empir_plugin.data.readers import SHEET_COLUMNS

    _, channels, height, width = data.images.shape
    tiles = data.images.numpy().reshape(-1, SHEET_COLUMNS, channels, height, width).transpose(0, 3, 1, 4, 2)
    pixels = tiles.reshape(-1, SHEET_COLUMNS * width, channels)
    labels = PngInfo()
    labels.add_text("labels", "".join(str(label) for label in data.labels.tolist()))
    content = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(content, "PNG", optimize=True, pnginfo=labels)
    return content.getvalue()


@click.command()
@click.argument("data_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path), default=SAMPLES)
def main(data_dir: Path, out_dir: Path) -> None:
    """Write the first 1,000 official test images of MNIST and CIFAR-10 from DATA_DIR to OUT_DIR."""
    from empir_plugin.data.image_set import load_images

    out_dir.mkdir(parents=True, exist_ok=True)
    for name in ("mnist", "cifar10"):
        data = load_images(name, data_dir=data_dir)
        if not data.is_full_official:
            raise click.ClickException(f"{data_dir} does not hold the official test images of {name}")
        content = sheet(data.first(COUNT))
        (out_dir / f"{name}.png").write_bytes(content)
        click.echo(f"{name}.png  {len(content):,} bytes  sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
