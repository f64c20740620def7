"""Contenders of the attack benchmark: our attacks, those of other libraries, and bare forward and backward passes."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from attack_timing import Contender, Counter, Make, Role
from torch import Tensor, nn

from empir_plugin._compat import contiguous_gradient, isolate_autoattack_state
from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.integer.convert import BF16, FLOAT32, run_on_integers

PEERS = ("torchattacks", "foolbox", "cleverhans", "pyautoattack")
CPU = torch.device("cpu")
STEPS = 40
COMPARED = 16
"""Images on which the network on integers is compared with float32 before an attack; an evaluation takes 64."""


def copy_as_written(model: nn.Module) -> nn.Module:
    """A copy without our preparation: weights quantized at every pass, parameters with gradients, NCHW layout."""
    network = copy.deepcopy(model).train().eval()  # Training mode forgets the weights quantized in advance.
    return network.to(memory_format=torch.contiguous_format).requires_grad_(True)


def pgd_contenders(model: nn.Module, threat: Threat, seed: int) -> list[Contender]:
    """PGD with 40 steps of eps / 4: ours, and three libraries and 40 bare passes on each form of the network."""
    plain, ready = copy_as_written(model), prepare(model, CPU)
    found = [
        Contender("empir_plugin", Role.OURS, plain, _our_pgd(threat, seed, FLOAT32)),
        Contender("empir_plugin, bf16 gradients", Role.OURS_BF16, plain, _our_pgd(threat, seed, BF16)),
    ]
    for network, role, where in ((plain, Role.PLAIN_PEER, "as written"), (ready, Role.PREPARED_PEER, "prepared")):
        makes = {
            "torchattacks": _pgd_of_torchattacks(threat.eps, seed),
            "foolbox": _pgd_of_foolbox(threat.eps, seed),
            "cleverhans": _pgd_of_cleverhans(threat.eps, seed),
        }
        found += [Contender(f"{name}, {where}", role, network, make) for name, make in makes.items()]
        found.append(Contender(f"{STEPS} bare passes, {where}", Role.BARE, network, _bare_passes))
    return found


def autoattack_contenders(model: nn.Module, threat: Threat, seed: int) -> list[Contender]:
    """AutoAttack, standard version: ours, and pyautoattack on each form of the network."""
    plain, ready = copy_as_written(model), _ContiguousGradient(prepare(model, CPU))
    make = _pyautoattack(threat, seed)
    return [
        Contender("empir_plugin", Role.OURS, plain, _our_autoattack(threat, seed, FLOAT32)),
        Contender("empir_plugin, bf16 gradients", Role.OURS_BF16, plain, _our_autoattack(threat, seed, BF16)),
        Contender("pyautoattack, as written", Role.PLAIN_PEER, plain, make),
        Contender("pyautoattack, prepared", Role.PREPARED_PEER, ready, make),
    ]


class _ContiguousGradient(nn.Module):
    """A network with contiguous gradients, which pyautoattack needs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        # Square Attack overwrites the logits.
        return self.network(contiguous_gradient(x)).clone()


def evaluated(network: Counter, x: Tensor, gradients: str) -> Counter:
    """A network as an evaluation prepares it: on integer kernels, compared with float32 on the first images."""
    images = x[:COMPARED].contiguous(memory_format=torch.channels_last)
    return network.around(run_on_integers(prepare(network.network, CPU), images, gradients=gradients)[0])


def _our_pgd(threat: Threat, seed: int, gradients: str) -> Make:
    def make(network: Counter, x: Tensor, y: Tensor) -> Tensor:
        return pgd(STEPS, step_size=threat.eps / 4)(evaluated(network, x, gradients), x, y, threat, seed=seed)

    return make


def _pgd_of_torchattacks(eps: float, seed: int) -> Make:
    import torchattacks

    def make(network: Counter, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return torchattacks.PGD(network, eps=eps, alpha=eps / 4, steps=STEPS, random_start=True)(x, y)

    return make


def _pgd_of_foolbox(eps: float, seed: int) -> Make:
    from foolbox.attacks import LinfPGD
    from foolbox.models.pytorch import PyTorchModel

    def make(network: Counter, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(seed)
        attack = LinfPGD(abs_stepsize=eps / 4, steps=STEPS, random_start=True)
        return attack(PyTorchModel(network, bounds=(0, 1), device=CPU), x, y, epsilons=eps)[1]

    return make


def _pgd_of_cleverhans(eps: float, seed: int) -> Make:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    def make(network: Counter, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return projected_gradient_descent(network, x, eps, eps / 4, STEPS, float("inf"), clip_min=0, clip_max=1, y=y)

    return make


def _bare_passes(network: Counter, x: Tensor, y: Tensor) -> Tensor:
    """Only the forward and backward passes of an attack, one per step."""
    for _ in range(STEPS):
        images = x.detach().requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(network(images), y), images)
    return x


def _our_autoattack(threat: Threat, seed: int, gradients: str) -> Make:
    def make(network: Counter, x: Tensor, y: Tensor) -> Tensor:
        return AutoAttackSuite()(evaluated(network, x, gradients), x, y, threat, seed=seed)

    return make


def _pyautoattack(threat: Threat, seed: int) -> Make:
    from pyautoattack import AutoAttack

    def make(network: Counter, x: Tensor, y: Tensor) -> Tensor:
        with isolate_autoattack_state():
            attack = AutoAttack(network, norm="Linf", eps=threat.eps, seed=seed, version="standard")
            found = attack.run_standard_evaluation(x, y, batch_size=250)
        return found[0]

    return make
