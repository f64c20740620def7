"""Compatibility with an unmodified RobustBench: https://github.com/RobustBench/robustbench.

The published release imports ``autoattack``, which is on no package index, and ``pkg_resources``, which setuptools has
removed; it lacks its own leaderboard template, cannot evaluate under corruptions, and has no MNIST. Nothing of it is
copied or changed on disk: import hooks (``hooks``) supply what is missing, and detect it by feature, never by version.
Importing this package loads neither torch nor RobustBench.
"""

from empir_plugin._compat.hooks import enable_mnist as enable_mnist
from empir_plugin._compat.hooks import install as install
from empir_plugin._compat.hooks import on_robustbench_import as on_robustbench_import
from empir_plugin._compat.observe import collect_autoattack_flags as collect_autoattack_flags
from empir_plugin._compat.observe import contiguous_gradient as contiguous_gradient
from empir_plugin._compat.observe import isolate_autoattack_state as isolate_autoattack_state
