"""A model and an attack for empir-plugin and RobustBench: an example to copy."""
