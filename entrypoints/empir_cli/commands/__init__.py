"""The commands of ``empir``, one module each."""
