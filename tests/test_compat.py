"""RobustBench as published, and as it may be found: mostly in subprocesses, for importing cannot be undone."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from empir_plugin._compat import collect_autoattack_flags, contiguous_gradient, isolate_autoattack_state
from empir_plugin._compat.adapter import AutoAttack
from empir_plugin.errors import InputError

PACKAGE = Path(__file__).parents[1] / "empir_plugin"

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


def told(script: str, *flags: str, path: Path | None = None) -> Any:
    """What the script prints on its last line."""
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

told = {}
calls = []
_compat.install()
_compat.on_robustbench_import(lambda: calls.append("registered before"))
_compat.enable_mnist(lambda n, data_dir, preprocessing: (digits[:n], labels[:n]))
told["lean"] = [name for name in ("torch", "timm", "numpy", "robustbench", "pyautoattack") if name in sys.modules]

import robustbench

_compat.on_robustbench_import(lambda: calls.append("registered after"))
told["calls"] = calls
try:
    import pkg_resources
    told["pkg_resources"] = "imported"
except ModuleNotFoundError:
    told["pkg_resources"] = "missing"

import autoattack, autoattack.autoattack, autoattack.state, pyautoattack.state, robustbench.data, robustbench.eval
told["one state class"] = robustbench.eval.EvaluationState is pyautoattack.state.EvaluationState
told["one AutoAttack"] = autoattack.autoattack.AutoAttack is autoattack.AutoAttack is robustbench.eval.AutoAttack
told["loader"] = type(robustbench.__spec__.loader).__name__
listed = robustbench.loaders.make_custom_dataset("", "helper_files/imagenet_test_image_ids.txt", defaultdict(int))
told["imagenet list"] = len(listed)

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
told["cifar10"] = {eps: robustbench.benchmark(model, n_examples=6, eps=float(eps)) for eps in ("1e-6", "0.5")}

model, digits, labels = accuracies(1, "mnist", 0)
told["mnist"] = robustbench.benchmark(model, n_examples=6, dataset="mnist", eps=0.5)
mnist = BenchmarkDataset("mnist")
told["same member"] = [
    mnist is other for other in (copy.deepcopy(mnist), pickle.loads(pickle.dumps(mnist)), BenchmarkDataset.mnist)
]
told["repr"] = repr(mnist)
told["iterated"] = [member.value for member in BenchmarkDataset]
told["classes"] = robustbench.utils.DATASET_CLASSES[mnist]
told["models"] = list(robustbench.model_zoo.model_dicts[mnist][ThreatModel.Linf])
try:
    BenchmarkDataset("fashion")
except ValueError as error:
    told["unknown"] = str(error)

from robustbench.leaderboard.template import generate_leaderboard
told["page"] = generate_leaderboard("cifar10", "Linf", FOLDER)
told["enums"] = generate_leaderboard(BenchmarkDataset.cifar_10, ThreatModel.Linf, FOLDER)
told["corruptions"] = generate_leaderboard("cifar10", "corruptions", FOLDER)
print()
print(json.dumps(told))
"""
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_entries(tmp_path_factory.mktemp("model_info"))
    return told(f"FOLDER = {str(folder)!r}\n" + PUBLISHED, "-W", "error")


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


# ---- Other ways of finding RobustBench: small stand-ins with the layout in question ----

STANDIN = {
    "robustbench/__init__.py": "from . import loaders, eval\n",
    "robustbench/loaders.py": "import pkg_resources\npath = pkg_resources.resource_filename(__name__, 'list.txt')\n",
    "robustbench/eval.py": "from autoattack import AutoAttack\n",
}
INSTALLED_AUTOATTACK = {"autoattack/__init__.py": ORIGINAL_AUTOATTACK, "autoattack/state.py": "installed = True\n"}
INSTALL = "from empir_plugin import _compat\n_compat.install()\n"


def test_an_installed_autoattack_wins(tmp_path: Path) -> None:
    write(tmp_path, STANDIN | INSTALLED_AUTOATTACK)
    script = """
import robustbench, autoattack.state
try:
    import autoattack.square  # the installed one has none: pyautoattack's must not fill the gap
except ModuleNotFoundError as error:
    print(json.dumps([robustbench.eval.AutoAttack.__module__, autoattack.state.installed, str(error)]))
"""
    assert told(INSTALL + script, path=tmp_path) == ["autoattack", True, "No module named 'autoattack.square'"]


def test_an_imported_pkg_resources_is_used_and_stays(tmp_path: Path) -> None:
    real = {"pkg_resources.py": "def resource_filename(module, name):\n    return 'the real one'\n"}
    write(tmp_path, STANDIN | INSTALLED_AUTOATTACK | real)
    script = "import robustbench\nprint(json.dumps([robustbench.loaders.path, 'pkg_resources' in sys.modules]))"
    assert told("import pkg_resources\n" + INSTALL + script, path=tmp_path) == ["the real one", True]


def test_a_deprecated_pkg_resources_is_not_imported(tmp_path: Path) -> None:
    real = {"pkg_resources.py": "raise UserWarning('pkg_resources is deprecated as an API')\n"}
    write(tmp_path, STANDIN | INSTALLED_AUTOATTACK | real)
    script = "import robustbench\nprint(json.dumps([robustbench.loaders.path, 'pkg_resources' in sys.modules]))"
    assert told(INSTALL + script, path=tmp_path) == [str(tmp_path / "robustbench" / "list.txt"), False]


def test_a_blocked_pkg_resources_stays_blocked(tmp_path: Path) -> None:
    write(tmp_path, STANDIN | INSTALLED_AUTOATTACK)
    script = "sys.modules['pkg_resources'] = None\nimport robustbench\nprint(json.dumps(sys.modules['pkg_resources']))"
    assert told(INSTALL + script, path=tmp_path) is None


def test_an_import_that_failed_before_can_be_repeated(tmp_path: Path) -> None:
    write(
        tmp_path,
        STANDIN
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
    observed = told(NO_PKG_RESOURCES + attempt + INSTALL + script, path=tmp_path)
    assert observed == [["robustbench.eval"], "autoattack"]


def test_a_usable_robustbench_may_be_imported_first(tmp_path: Path) -> None:
    real = {"pkg_resources.py": "def resource_filename(module, name):\n    return 'the real one'\n"}
    write(tmp_path, STANDIN | INSTALLED_AUTOATTACK | real)
    script = "calls = []\n_compat.on_robustbench_import(lambda: calls.append(1))\nprint(json.dumps(calls))"
    assert told("import robustbench\n" + INSTALL + script, path=tmp_path) == [1]


ALIAS = "import types\nsys.modules['autoattack'] = alias = types.ModuleType('autoattack')\n"
CHANGED = "class AutoAttack:\n    def __init__(self, model, *, attacks=None): ...\nalias.AutoAttack = AutoAttack\n"
REAL = {"pkg_resources.py": "def resource_filename(module, name):\n    return name\n"}


@pytest.mark.parametrize("order", ["import robustbench\n" + INSTALL, INSTALL + "import robustbench\n"])
def test_a_substitute_that_benchmark_cannot_call_is_refused(tmp_path: Path, order: str) -> None:
    done = python(ALIAS + CHANGED + order, path=write(tmp_path, STANDIN | REAL))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "empir_plugin.errors.CompatibilityError: robustbench must be imported with AutoAttack's original interface, "
        "got that of __main__: import empir_plugin before robustbench, "
        "and put no substitute for autoattack into sys.modules"
    )


def test_a_half_imported_robustbench_is_refused() -> None:
    done = python("sys.modules['robustbench'] = types.ModuleType('robustbench')\n" + INSTALL)
    assert done.stderr.splitlines()[-1] == (
        "empir_plugin.errors.CompatibilityError: robustbench must be imported whole, got one without robustbench.eval: "
        "import empir_plugin before robustbench, in a fresh interpreter; if that does not help, another package was "
        "installed over it, as torchattacks 3.5 is: pip install --force-reinstall --no-deps robustbench"
    )


def test_a_failing_callback_fails_the_import(tmp_path: Path) -> None:
    write(tmp_path, STANDIN | INSTALLED_AUTOATTACK)
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
def test_known_warnings_of_an_import_are_no_errors(tmp_path: Path, message: str, category: str, passes: bool) -> None:
    warning = f"import warnings\nwarnings.warn({message!r}, {category})\n"
    write(tmp_path, STANDIN | INSTALLED_AUTOATTACK | {"robustbench/data.py": warning})
    write(tmp_path, {"robustbench/__init__.py": "from . import data, loaders, eval\n"})
    done = python(INSTALL + "import robustbench", "-W", "error", path=tmp_path)
    assert done.returncode == (0 if passes else 1), done.stderr
    later = python(INSTALL + "import robustbench\n" + warning, "-W", "error", path=tmp_path)
    assert later.returncode == 1


def test_without_the_hooks_the_standin_does_not_import(tmp_path: Path) -> None:
    done = python(NO_PKG_RESOURCES + "import robustbench", path=write(tmp_path, STANDIN))
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
    observed = told(INSTALL + script, "-W", "error", path=tmp_path)
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
    observed = told(NO_PKG_RESOURCES + attempt + INSTALL + script, path=write_entries(tmp_path))
    assert observed == ["load_cifar10", "robustbench.model_zoo.enums"]


@pytest.mark.slow
def test_the_template_reaches_a_robustbench_imported_first(tmp_path: Path) -> None:
    write(tmp_path, INSTALLED_AUTOATTACK | REAL | {"autoattack/state.py": "class EvaluationState: ...\n"})
    before = "from robustbench.leaderboard.template import generate_leaderboard\n"
    script = f"page = generate_leaderboard('cifar10', 'Linf', {str(tmp_path)!r})\nprint(json.dumps('EMPIR' in page))"
    assert told(before + INSTALL + script, path=write_entries(tmp_path)) is True


# ---- The adapter, in this process ----


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def linear(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).eval()


def quick(model: Any, eps: float = 0.5, **kwargs: Any) -> AutoAttack:
    settings = {"attacks_to_run": ["apgd-ce"], "version": "custom", "device": "cpu", "seed": 0}
    adversary = AutoAttack(model, "Linf", eps, **(settings | kwargs))
    adversary.apgd.n_iter = adversary.square.n_queries = 5
    adversary.apgd.n_restarts = 1
    return adversary


def attacked(model: Any, images: Tensor, eps: float = 0.5, **kwargs: Any) -> tuple[AutoAttack, float]:
    """The adversary after its run, and the accuracy it left."""
    adversary = quick(model, eps, **kwargs)
    labels = model(images).argmax(1)
    found = adversary.run_standard_evaluation(images, labels, bs=4)
    return adversary, (model(found).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize(("eps", "accuracy"), [(0.5, 0.0), (1e-6, 1.0)])
def test_the_adapter_attacks(images: Tensor, eps: float, accuracy: float) -> None:
    assert attacked(linear(), images, eps)[1] == accuracy


def test_labels_come_on_request_as_in_the_original(images: Tensor) -> None:
    model = linear()
    labels = model(images).argmax(1)
    found, decisions = quick(model).run_standard_evaluation(images, labels, 4, return_labels=True)
    assert torch.equal(decisions, model(found).argmax(1))


def test_each_attack_alone(images: Tensor) -> None:
    model = linear()
    adversary = quick(model, attacks_to_run=["apgd-ce", "apgd-dlr"])
    found = adversary.run_standard_evaluation_individual(images, model(images).argmax(1), bs=4)
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(["apgd-ce", "apgd-dlr"], images.shape)
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"]


def test_the_standard_version_is_the_default() -> None:
    adversary = AutoAttack(linear(), device="cpu")
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    adversary.set_version("rand")
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"]


def test_attacks_are_chosen_with_the_custom_version_only() -> None:
    with pytest.raises(ValueError, match="custom"):
        AutoAttack(linear(), attacks_to_run=["apgd-ce"], device="cpu")


def test_a_state_path_is_refused_before_anything_runs(images: Tensor, tmp_path: Path) -> None:
    def model(_: Tensor) -> Tensor:
        pytest.fail("the model was called")

    with pytest.raises(InputError, match=r"state_path must be None, got .*cannot resume"):
        quick(model).run_standard_evaluation(images, torch.zeros(6), state_path=tmp_path / "state.json")


def test_tensorflow_is_refused() -> None:
    with pytest.raises(InputError, match="is_tf_model must be False"):
        AutoAttack(linear(), is_tf_model=True)


def test_flags_are_data(images: Tensor) -> None:
    softmax, _ = attacked(nn.Sequential(linear(), nn.Softmax(1)), images)
    assert [flag for flag in softmax.flags if "probability distribution" in flag] == softmax.flags != []
    assert attacked(linear(), images)[0].flags == []


def test_the_log_goes_to_a_file(images: Tensor, tmp_path: Path) -> None:
    level = logging.getLogger("auto-attack").level
    attacked(linear(), images, log_path=tmp_path / "log")
    attacked(linear(), images, log_path=tmp_path / "log")
    assert (tmp_path / "log").read_text().count("initial accuracy: 100.00%") == 2
    assert logging.getLogger("auto-attack").level == level
    assert logging.getLogger("auto-attack").handlers == []


def test_a_quiet_adapter_logs_flags_only(images: Tensor, tmp_path: Path) -> None:
    attacked(linear(), images, log_path=tmp_path / "log", verbose=False)
    assert "initial accuracy" not in (tmp_path / "log").read_text()


def channels_last() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_last_can_be_attacked(images: Tensor, layout: torch.memory_format) -> None:
    assert attacked(channels_last(), images.to(memory_format=layout), attacks_to_run=["apgd-dlr"])[1] < 1


def test_pyautoattack_alone_cannot_attack_images_in_channels_last(images: Tensor) -> None:
    model = channels_last()
    adversary = pyautoattack.AutoAttack(model, attacks=["apgd-dlr"], version="custom", eps=0.5)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        adversary.run_standard_evaluation(images.to(memory_format=torch.channels_last), model(images).argmax(1))


def test_the_attacks_are_handed_contiguous_gradients(images: Tensor) -> None:
    model = channels_last()
    x = images.requires_grad_()
    (plain,) = torch.autograd.grad(model(x).sum(), x)
    (handed,) = torch.autograd.grad(quick(model).apgd.model(x).sum(), x)
    assert not plain.is_contiguous()
    assert handed.is_contiguous()
    assert torch.equal(plain, handed)


def test_gradients_are_contiguous_only_with_the_identity() -> None:
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    (plain,) = torch.autograd.grad((x * weight).sum(), x)
    (contiguous,) = torch.autograd.grad((contiguous_gradient(x) * weight).sum(), x)
    assert not plain.is_contiguous()
    assert contiguous.is_contiguous()
    assert torch.equal(plain, contiguous)


def test_the_identity_passes_without_gradients() -> None:
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(contiguous_gradient(x), x)
    assert torch.equal(contiguous_gradient(x.detach()), x)


class Dynamic(nn.Module):
    """AutoAttack takes any Python function of this name that runs in forward for a sign of a dynamic defence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def backward(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        self.backward()
        return self.inner(x)


def test_one_dynamic_model_does_not_incriminate_the_next(images: Tensor) -> None:
    assert "dynamic" in attacked(Dynamic(), images)[0].flags[0]
    assert attacked(linear(), images)[0].flags == []


def test_counts_left_by_others_do_not_incriminate(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyautoattack import checks

    monkeypatch.setitem(checks.funcs, "backward", 3)
    assert attacked(linear(), images)[0].flags == []
    assert set(checks.funcs.values()) == {0}


def test_the_trace_function_survives(images: Tensor) -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        attacked(linear(), images)
        after = sys.gettrace()
        with pytest.raises(ZeroDivisionError):
            die_untraced()
        after_an_error = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    assert after_an_error is trace


def die_untraced() -> None:
    with isolate_autoattack_state():
        sys.settrace(None)
        raise ZeroDivisionError


def test_without_care_the_trace_function_is_lost(images: Tensor) -> None:
    from pyautoattack import checks

    before = sys.gettrace()
    try:
        sys.settrace(lambda *_: None)
        checks.check_dynamic(linear(), images)
        assert sys.gettrace() is None
    finally:
        sys.settrace(before)


SILENCERS: dict[str, Callable[[logging.Logger], None]] = {
    "logger disabled": lambda logger: setattr(logger, "disabled", True),
    "level raised": lambda logger: logger.setLevel(logging.CRITICAL),
    "all logging disabled": lambda _: logging.disable(logging.CRITICAL),
}


@pytest.fixture(params=SILENCERS.values(), ids=list(SILENCERS))
def silent(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """AutoAttack's logger, silenced one way or another."""
    logger = logging.getLogger("auto-attack")
    level, disabled, muted = logger.level, logger.disabled, logger.manager.disable
    request.param(logger)
    yield logger
    logger.setLevel(level)
    logger.disabled = disabled
    logging.disable(muted)


def test_flags_arrive_whatever_the_logging_configuration(silent: logging.Logger) -> None:
    with collect_autoattack_flags() as outer, collect_autoattack_flags() as inner:
        silent.warning("a %s", "flag")
        silent.info("progress")
    assert outer == inner == ["a flag"]
    assert not silent.isEnabledFor(logging.WARNING)
