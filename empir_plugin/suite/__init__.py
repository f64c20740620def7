"""Robustness of named models as a test suite: ``pytest --pyargs empir_plugin.suite --rb-model empir-cifar``.

The options are those of the pytest plugin ``pytest_empir`` (``pytest --help``, group *robustness*).
"""
