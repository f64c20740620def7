"""Copies of networks for evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.layers import frozen_copy, is_inference_tensor


def two_convolutions(toys: ModuleType) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), toys.conv(), nn.Flatten())


def keep_results(model: nn.Sequential) -> None:
    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        module.last, module.all = output, {"outputs": [(output, 0)]}  # type: ignore[assignment]

    model[0].register_forward_hook(keep)


HELD = [
    pytest.param(lambda model: prune.l1_unstructured(model[0], "weight", amount=0.5), id="pruning"),
    pytest.param(lambda model: prune.random_unstructured(model[0], "bias", amount=0.5), id="pruning-of-a-bias"),
    pytest.param(lambda model: prune.ln_structured(model[2], "weight", amount=0.5, n=2, dim=0), id="quantized-layer"),
    pytest.param(lambda model: torch.nn.utils.weight_norm(model[0]), id="weight-norm"),
    pytest.param(lambda model: torch.nn.utils.spectral_norm(model[0]), id="spectral-norm"),
    pytest.param(keep_results, id="results"),
]


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("change", HELD)
def test_networks_are_copied_after_a_backward_pass(toys: ModuleType, change: Callable[[nn.Sequential], object]) -> None:
    model, x = two_convolutions(toys), torch.rand(3, 2, 6, 6)
    change(model)
    model.train()(x).square().sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    twin = frozen_copy(model)
    assert torch.equal(twin(x), model.eval()(x))
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(x), model(x))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("script", [torch.jit.script, lambda model: torch.jit.trace(model, torch.rand(1, 2, 6, 6))])
def test_torchscript_is_refused_by_its_name(script: Callable[[nn.Module], nn.Module]) -> None:
    scripted = script(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()).eval())
    with pytest.raises(InputError, match=r"the model is TorchScript, got a .*: pass the module it was made from"):
        frozen_copy(scripted)
    with pytest.raises(InputError, match=r"part '1.0' of the model is TorchScript"):
        frozen_copy(nn.Sequential(nn.Identity(), nn.Sequential(scripted)))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_part_that_cannot_be_copied_is_quoted_whatever_it_raises() -> None:
    class Refuses:
        def __deepcopy__(self, memo: object) -> object:
            raise KeyError("\x1b[31mno copies\x1b[0m")

    for part, reason in (
        (Refuses(), "KeyError: 'no copies'"),
        (torch.jit.script(torch.nn.functional.relu), "PickleError: ScriptFunction cannot be pickled"),
        ((each for each in range(3)), "TypeError: cannot pickle 'generator' object"),
    ):
        model = nn.Flatten()
        model.part = part  # type: ignore[assignment]
        with pytest.raises(EvaluationError, match=rf"cannot be copied \({reason}\): .*copy\.deepcopy"):
            frozen_copy(model)


def test_tensors_made_inside_inference_mode() -> None:
    with torch.inference_mode():
        inside = nn.Linear(2, 2)
    assert is_inference_tensor(inside.weight)
    assert not is_inference_tensor(copy.deepcopy(inside).weight)
    assert not is_inference_tensor(nn.LazyLinear(2).weight)
