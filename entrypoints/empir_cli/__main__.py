"""``python -m empir_cli`` is the command ``empir``."""

from empir_cli import main

main()
