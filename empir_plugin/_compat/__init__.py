"""What an unmodified RobustBench needs in order to run: https://github.com/RobustBench/robustbench.

The published release imports ``autoattack``, which no package index has, and ``pkg_resources``, which setuptools no
longer has; it lacks its own leaderboard template, and it knows no MNIST. Nothing of it is copied or changed on disk:
import hooks (``hooks``) supply what is missing, each found by looking for the feature, never by comparing versions.
Importing this package loads neither torch nor RobustBench.
"""

from empir_plugin._compat.hooks import enable_mnist as enable_mnist
from empir_plugin._compat.hooks import install as install
from empir_plugin._compat.hooks import on_robustbench_import as on_robustbench_import
from empir_plugin._compat.observe import collect_autoattack_flags as collect_autoattack_flags
from empir_plugin._compat.observe import contiguous_gradient as contiguous_gradient
from empir_plugin._compat.observe import isolate_autoattack_state as isolate_autoattack_state
