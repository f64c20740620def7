"""``python -m empir_plugin`` is the command ``empir``."""

from empir_cli import main

main()
