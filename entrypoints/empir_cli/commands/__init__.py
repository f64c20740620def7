"""One module for each command of ``empir``."""
