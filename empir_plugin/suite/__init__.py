"""Robustness of named models as a pytest suite: ``pytest --pyargs empir_plugin.suite --rb-model empir-cifar``.

The options are those of the pytest plugin ``pytest_empir`` (``pytest --help``, group *robustness*).
"""
