"""Import hooks: RobustBench as published and in other installations; mostly in subprocesses, as imports persist."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2] / "empir_plugin"

# Only `_compat` is under test, so its parent is a bare package: what `empir_plugin/__init__.py` imports is kept out.
BARE_PARENT = f"""
import json, sys, types
sys.modules["empir_plugin"] = types.ModuleType("empir_plugin")
sys.modules["empir_plugin"].__path__ = [{str(PACKAGE)!r}]
"""

NO_PKG_RESOURCES = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "pkg_resources":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

ORIGINAL_AUTOATTACK = """
class AutoAttack:
    def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, attacks_to_run=[], version="standard",
                 is_tf_model=False, device="cuda", log_path=None):
        pass

    def run_standard_evaluation(self, x_orig, y_orig, bs=250, return_labels=False, state_path=None):
        return x_orig
"""

ENTRIES: dict[str, dict[str, Any]] = {
    "Sen2020EMPIR": {
        "link": "https://openreview.net/forum?id=HJem3yHKwH&x=1",
        "name": "EMPIR <script>",
        "clean_acc": "72.56",
        "autoattack_acc": "20.00",
        "external": "19.50",
        "unreliable": True,
        "additional_data": False,
        "architecture": "CIFARconv <b>",
        "venue": None,
        "footnote": "see <i>note</i>",
    },
    "Best": {
        "link": "javascript:alert(1)",
        "name": "Best",
        "clean_acc": "90.00",
        "autoattack_acc": "50.00",
        "additional_data": True,
        "architecture": "ResNet",
        "venue": "GitHub,<br>Oct 2019",
    },
}


def python(script: str, *flags: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    command = [sys.executable, *flags, "-c", BARE_PARENT + script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def run_script(script: str, *flags: str, path: Path | None = None) -> Any:
    """The JSON value on the last line that a script prints."""
    done = python(script, *flags, path=path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def write_entries(root: Path) -> Path:
    return write(root, {f"cifar10/Linf/{name}.json": json.dumps(entry) for name, entry in ENTRIES.items()})


# ---- The published release, in one process in which every warning is an error and there is no setuptools ----

PUBLISHED = (
    NO_PKG_RESOURCES
    + """
import copy, pickle, sys
from collections import defaultdict
from empir_plugin import _compat

report = {}
calls = []
_compat.install()
_compat.on_robustbench_import(lambda: calls.append("registered before"))
_compat.enable_mnist(lambda n, data_dir, preprocessing: (digits[:n], labels[:n]))
report["lean"] = [name for name in ("torch", "timm", "numpy", "robustbench", "pyautoattack") if name in sys.modules]

import robustbench

_compat.on_robustbench_import(lambda: calls.append("registered after"))
report["calls"] = calls
try:
    import pkg_resources
    report["pkg_resources"] = "imported"
except ModuleNotFoundError:
    report["pkg_resources"] = "missing"

import autoattack, autoattack.autoattack, autoattack.state, pyautoattack.state, robustbench.data, robustbench.eval
report["one state class"] = robustbench.eval.EvaluationState is pyautoattack.state.EvaluationState
report["one AutoAttack"] = autoattack.autoattack.AutoAttack is autoattack.AutoAttack is robustbench.eval.AutoAttack
report["loader"] = type(robustbench.__spec__.loader).__name__
listed = robustbench.loaders.make_custom_dataset("", "helper_files/imagenet_test_image_ids.txt", defaultdict(int))
report["imagenet list"] = len(listed)

import torch
from torch import nn
torch.manual_seed(0)

class Quick(autoattack.AutoAttack):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.attacks_to_run = ["apgd-ce", "square"]
        self.apgd.n_iter = self.square.n_queries = 5

def accuracies(channels, dataset, eps):
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10)).eval()
    images = torch.rand(8, channels, 8, 8)
    return model, images, model(images).argmax(1)

robustbench.eval.AutoAttack = Quick
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
model, images, labels = accuracies(3, "cifar10", 0)
loader = lambda n, data_dir, preprocessing: (images[:n], labels[:n])
robustbench.data._clean_dataset_loaders[BenchmarkDataset.cifar_10] = loader
report["cifar10"] = {eps: robustbench.benchmark(model, n_examples=6, eps=float(eps)) for eps in ("1e-6", "0.5")}

model, digits, labels = accuracies(1, "mnist", 0)
report["mnist"] = robustbench.benchmark(model, n_examples=6, dataset="mnist", eps=0.5)
mnist = BenchmarkDataset("mnist")
report["same member"] = [
    mnist is other for other in (copy.deepcopy(mnist), pickle.loads(pickle.dumps(mnist)), BenchmarkDataset.mnist)
]
report["repr"] = repr(mnist)
report["iterated"] = [member.value for member in BenchmarkDataset]
report["classes"] = robustbench.utils.DATASET_CLASSES[mnist]
report["models"] = list(robustbench.model_zoo.model_dicts[mnist][ThreatModel.Linf])
try:
    BenchmarkDataset("fashion")
except ValueError as error:
    report["unknown"] = str(error)

from robustbench.leaderboard.template import generate_leaderboard
report["page"] = generate_leaderboard("cifar10", "Linf", FOLDER)
report["enums"] = generate_leaderboard(BenchmarkDataset.cifar_10, ThreatModel.Linf, FOLDER)
report["corruptions"] = generate_leaderboard("cifar10", "corruptions", FOLDER)
print()
print(json.dumps(report))
"""
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_entries(tmp_path_factory.mktemp("model_info"))
    return run_script(f"FOLDER = {str(folder)!r}\n" + PUBLISHED, "-W", "error")


def test_install_loads_nothing(published: dict[str, Any]) -> None:
    assert published["lean"] == []


def test_the_published_release_imports(published: dict[str, Any]) -> None:
    assert published["imagenet list"] == 5000
    assert published["one state class"]
    assert published["one AutoAttack"]


def test_the_hooks_leave_no_trace(published: dict[str, Any]) -> None:
    assert published["pkg_resources"] == "missing"
    assert published["loader"] == "SourceFileLoader"


def test_callbacks_run_once_whenever_registered(published: dict[str, Any]) -> None:
    assert published["calls"] == ["registered before", "registered after"]


def test_benchmark_runs(published: dict[str, Any]) -> None:
    assert published["cifar10"] == {"1e-6": [1.0, 1.0], "0.5": [1.0, 0.0]}


def test_mnist_can_be_benchmarked(published: dict[str, Any]) -> None:
    assert published["mnist"] == [1.0, 0.0]
    assert published["classes"] == 10
    assert published["models"] == []


def test_mnist_is_a_member_that_is_not_iterated_over(published: dict[str, Any]) -> None:
    assert published["same member"] == [True, True, True]
    assert published["repr"] == "<BenchmarkDataset.mnist: 'mnist'>"
    assert published["iterated"] == ["cifar10", "cifar100", "imagenet"]
    assert published["unknown"] == "'fashion' is not a valid BenchmarkDataset"


def test_the_leaderboard_ranks_and_escapes(published: dict[str, Any]) -> None:
    page = published["page"]
    assert page.index("Best") < page.index("EMPIR")
    assert 'id="cifar10_leaderboard_Linf"' in page
    assert "EMPIR &lt;script&gt;</a><br><small>see <i>note</i></small>" in page
    assert 'href="https://openreview.net/forum?id=HJem3yHKwH&amp;x=1"' in page
    assert "javascript" not in page
    assert "CIFARconv &lt;b&gt;" in page
    assert "GitHub, Oct 2019" in page


def test_the_leaderboard_shows_the_best_known_accuracy_and_the_flag(published: dict[str, Any]) -> None:
    best, empir = published["page"].split("<tbody>")[1].split("</tr>")[:2]
    assert [text in empir for text in ("72.56%", "20.00%", "19.50%", "Unknown", "None")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert best.count("50.00%") == 2
    assert "Unknown" in best


def test_the_leaderboard_of_enums_and_of_corruptions(published: dict[str, Any]) -> None:
    assert published["enums"] == published["page"]
    assert "AutoAttack" not in published["corruptions"]


# ---- Other installations of RobustBench: small packages with the same layout ----

MINIMAL = {
    "robustbench/__init__.py": "from . import loaders, eval\n",
    "robustbench/loaders.py": "import pkg_resources\npath = pkg_resources.resource_filename(__name__, 'list.txt')\n",
    "robustbench/eval.py": "from autoattack import AutoAttack\n",
}
INSTALLED_AUTOATTACK = {"autoattack/__init__.py": ORIGINAL_AUTOATTACK, "autoattack/state.py": "installed = True\n"}
INSTALL = "from empir_plugin import _compat\n_compat.install()\n"


def test_an_installed_autoattack_takes_precedence(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL | INSTALLED_AUTOATTACK)
    script = """
import robustbench, autoattack.state
try:
    import autoattack.square  # the installed one has none: pyautoattack's must not fill the gap
except ModuleNotFoundError as error:
    print(json.dumps([robustbench.eval.AutoAttack.__module__, autoattack.state.installed, str(error)]))
"""
    assert run_script(INSTALL + script, path=tmp_path) == ["autoattack", True, "No module named 'autoattack.square'"]


def test_an_imported_pkg_resources_is_used_and_stays(tmp_path: Path) -> None:
    real = {"pkg_resources.py": "def resource_filename(module, name):\n    return 'the real one'\n"}
    write(tmp_path, MINIMAL | INSTALLED_AUTOATTACK | real)
    script = "import robustbench\nprint(json.dumps([robustbench.loaders.path, 'pkg_resources' in sys.modules]))"
    assert run_script("import pkg_resources\n" + INSTALL + script, path=tmp_path) == ["the real one", True]


def test_a_deprecated_pkg_resources_is_not_imported(tmp_path: Path) -> None:
    real = {"pkg_resources.py": "raise UserWarning('pkg_resources is deprecated as an API')\n"}
    write(tmp_path, MINIMAL | INSTALLED_AUTOATTACK | real)
    script = "import robustbench\nprint(json.dumps([robustbench.loaders.path, 'pkg_resources' in sys.modules]))"
    assert run_script(INSTALL + script, path=tmp_path) == [str(tmp_path / "robustbench" / "list.txt"), False]


def test_a_blocked_pkg_resources_stays_blocked(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL | INSTALLED_AUTOATTACK)
    script = "sys.modules['pkg_resources'] = None\nimport robustbench\nprint(json.dumps(sys.modules['pkg_resources']))"
    assert run_script(INSTALL + script, path=tmp_path) is None


def test_an_import_that_failed_before_can_be_repeated(tmp_path: Path) -> None:
    write(
        tmp_path,
        MINIMAL
        | INSTALLED_AUTOATTACK
        | {"robustbench/__init__.py": "from .eval import AutoAttack\nfrom . import loaders\n"},
    )
    attempt = """
try:
    import robustbench
except ModuleNotFoundError:
    leftovers = [name for name in sys.modules if name.startswith("robustbench")]
"""
    script = "import robustbench\nprint(json.dumps([leftovers, robustbench.eval.AutoAttack.__module__]))"
    observed = run_script(NO_PKG_RESOURCES + attempt + INSTALL + script, path=tmp_path)
    assert observed == [["robustbench.eval"], "autoattack"]


def test_a_usable_robustbench_may_be_imported_first(tmp_path: Path) -> None:
    real = {"pkg_resources.py": "def resource_filename(module, name):\n    return 'the real one'\n"}
    write(tmp_path, MINIMAL | INSTALLED_AUTOATTACK | real)
    script = "calls = []\n_compat.on_robustbench_import(lambda: calls.append(1))\nprint(json.dumps(calls))"
    assert run_script("import robustbench\n" + INSTALL + script, path=tmp_path) == [1]


ALIAS = "import types\nsys.modules['autoattack'] = alias = types.ModuleType('autoattack')\n"
CHANGED = "class AutoAttack:\n    def __init__(self, model, *, attacks=None): ...\nalias.AutoAttack = AutoAttack\n"
REAL = {"pkg_resources.py": "def resource_filename(module, name):\n    return name\n"}


@pytest.mark.parametrize("order", ["import robustbench\n" + INSTALL, INSTALL + "import robustbench\n"])
def test_a_substitute_that_benchmark_cannot_call_is_refused(tmp_path: Path, order: str) -> None:
    done = python(ALIAS + CHANGED + order, path=write(tmp_path, MINIMAL | REAL))
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("empir_plugin.errors.CompatibilityError: ")
    assert all(text in error for text in ("original interface", "got that of __main__", "import empir_plugin before"))


def test_an_incomplete_robustbench_is_refused() -> None:
    done = python("sys.modules['robustbench'] = types.ModuleType('robustbench')\n" + INSTALL)
    error = done.stderr.splitlines()[-1]
    assert error.startswith("empir_plugin.errors.CompatibilityError: ")
    cures = ("import empir_plugin before", "pip install --force-reinstall --no-deps robustbench")
    assert all(text in error for text in ("got one without robustbench.eval", *cures))


def test_a_failing_callback_fails_the_import(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL | INSTALLED_AUTOATTACK)
    done = python(INSTALL + "_compat.on_robustbench_import(lambda: 1 / 0)\nimport robustbench", path=tmp_path)
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("message", "category", "passes"),
    [
        ("`torch.jit.interface` is deprecated. Please", "FutureWarning", True),
        ("Importing from timm.models.layers is deprecated", "DeprecationWarning", True),
        ("something else is deprecated", "DeprecationWarning", False),
    ],
)
def test_known_warnings_of_an_import_are_silenced(tmp_path: Path, message: str, category: str, passes: bool) -> None:
    warning = f"import warnings\nwarnings.warn({message!r}, {category})\n"
    write(tmp_path, MINIMAL | INSTALLED_AUTOATTACK | {"robustbench/data.py": warning})
    write(tmp_path, {"robustbench/__init__.py": "from . import data, loaders, eval\n"})
    done = python(INSTALL + "import robustbench", "-W", "error", path=tmp_path)
    assert done.returncode == (0 if passes else 1), done.stderr
    later = python(INSTALL + "import robustbench\n" + warning, "-W", "error", path=tmp_path)
    assert later.returncode == 1


def test_without_the_hooks_the_minimal_package_does_not_import(tmp_path: Path) -> None:
    done = python(NO_PKG_RESOURCES + "import robustbench", path=write(tmp_path, MINIMAL))
    assert "ModuleNotFoundError: No module named 'pkg_resources'" in done.stderr


# ---- The release itself in the other layouts: an import of RobustBench each ----


@pytest.mark.slow
def test_the_layout_of_git_head(tmp_path: Path) -> None:
    """AutoAttack's original is installed, and the template is packaged: neither is replaced."""
    spec = importlib.util.find_spec("robustbench")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, tmp_path / "robustbench")
    template = {"robustbench/leaderboard/leaderboard.html.j2": "packaged: {{ models | length }}"}
    write(tmp_path, INSTALLED_AUTOATTACK | {"autoattack/state.py": "class EvaluationState: ...\n"} | template)
    write_entries(tmp_path)
    script = f"""
import robustbench, robustbench.eval
from robustbench.leaderboard.template import generate_leaderboard
page = generate_leaderboard("cifar10", "Linf", {str(tmp_path)!r})
print(json.dumps([page, robustbench.__file__, robustbench.eval.AutoAttack.__module__]))
"""
    observed = run_script(INSTALL + script, "-W", "error", path=tmp_path)
    assert observed == ["packaged: 2", str(tmp_path / "robustbench" / "__init__.py"), "autoattack"]


@pytest.mark.slow
def test_the_release_after_an_import_that_failed(tmp_path: Path) -> None:
    attempt = """
try:
    import robustbench
except ModuleNotFoundError as error:
    print(error)
"""
    script = f"""
import robustbench
from robustbench.leaderboard.template import generate_leaderboard
generate_leaderboard("cifar10", "Linf", {str(tmp_path)!r})
print(json.dumps([robustbench.data.load_cifar10.__name__, robustbench.model_zoo.enums.__name__]))
"""
    observed = run_script(NO_PKG_RESOURCES + attempt + INSTALL + script, path=write_entries(tmp_path))
    assert observed == ["load_cifar10", "robustbench.model_zoo.enums"]


@pytest.mark.slow
def test_the_template_reaches_a_robustbench_imported_first(tmp_path: Path) -> None:
    write(tmp_path, INSTALLED_AUTOATTACK | REAL | {"autoattack/state.py": "class EvaluationState: ...\n"})
    before = "from robustbench.leaderboard.template import generate_leaderboard\n"
    script = f"page = generate_leaderboard('cifar10', 'Linf', {str(tmp_path)!r})\nprint(json.dumps('EMPIR' in page))"
    assert run_script(before + INSTALL + script, path=write_entries(tmp_path)) is True
