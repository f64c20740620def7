"""One attack of a protocol, with all that decides what its number means."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.threat import Threat


class Labels(Enum):
    """What an attack is told the images show."""

    TRUE = "true labels"
    OWN = "the model's own clean predictions"


@dataclass(frozen=True)
class AttackSpec:
    """An attack as a protocol runs it.

    One rule gives every verdict: an image withstood the attack if the whole model's decision on the image the attack
    returned is the *true* label. An image that is not attacked did not withstand.

    Args:
        name: What tables call it.
        attack: Settings bound; called with the whole model.
        labels: What the attack pushes away from.
        attack_all: Attack the images the model misclassifies, too: such an image can come back classified correctly,
            and then counts as withstood.
        threat: What bounds this attack, and what the judge checks it against; the run's threat where left out.
        batch_size: How many images the attack must be given at once, in the order of the data set, because they
            influence each other; any number where left out.
        aim: Whom it attacks and who says that it succeeded, as a phrase.

    Example:
        >>> from empir_plugin.attacks import fgsm
        >>> AttackSpec("FGSM", fgsm()).bounded
        True
    """

    name: str
    attack: Attack
    labels: Labels = Labels.TRUE
    attack_all: bool = False
    threat: Threat | None = None
    batch_size: int | None = None
    aim: str = "the whole model, by its own decision"

    @property
    def bounded(self) -> bool:
        """Whether it keeps to a finite budget."""
        return self.threat is None or math.isfinite(self.threat.eps)

    def counts_under(self, threat: Threat) -> bool:
        """Whether it belongs in a worst case under a run's threat: only if its own allows no more.

        Example:
            >>> from empir_plugin.attacks import fgsm
            >>> small, large = Threat.parse("Linf:2/255"), Threat.parse("Linf:8/255")
            >>> spec = AttackSpec("FGSM", fgsm(), threat=small)
            >>> spec.counts_under(large), AttackSpec("FGSM", fgsm()).counts_under(large)
            (True, True)
            >>> AttackSpec("FGSM", fgsm(), threat=large).counts_under(small)
            False
        """
        return self.threat is None or (self.threat.norm == threat.norm and self.threat.eps <= threat.eps)

    def with_batch_size(self, batch_size: int) -> AttackSpec:
        """The same with no more images per forward pass, where AutoAttack has a number of its own."""
        suite = self.attack
        if not isinstance(suite, AutoAttackSuite) or suite.batch_size <= batch_size:
            return self
        return replace(self, attack=replace(suite, batch_size=batch_size))

    def describe(self) -> str:
        """One sentence for outputs."""
        images = "all images" if self.attack_all else "the images classified correctly"
        limits = "" if self.bounded else "; without a budget"
        together = "" if self.batch_size is None else f"; in batches of {self.batch_size}"
        return f"{self.name}: attacks {self.aim}; labels: {self.labels.value}; on {images}{limits}{together}."
