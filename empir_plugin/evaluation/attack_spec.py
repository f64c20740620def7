"""The attack spec: one attack of a protocol, with everything that decides what its accuracy means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError


class Labels(Enum):
    """The labels an attack is given."""

    TRUE = "true labels"
    OWN = "the model's own clean predictions"


@dataclass(frozen=True)
class AttackSpec:
    """An attack as a protocol runs it.

    One rule gives every verdict: an image is robust to the attack if the whole model classifies what the attack
    returned as the *true* label. An image that is not attacked does not count as robust.

    Args:
        name: Name in tables and records.
        attack: The attack with its settings; called with the whole model.
        labels: The labels the attack pushes away from.
        attack_all: Attack misclassified images, too: such an image can come back classified correctly, and then counts
            as robust.
        threat: The budget of this attack, which the judge checks; the evaluation's threat by default.
        batch_size: How many images the attack must be given at once, in the order of the data set, because they
            influence each other; any number by default.
        aim: What it attacks and how it judges its success, as a phrase.
        left_out: Parts of AutoAttack that do not run because they are not defined on the data, with the reason.

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
    left_out: tuple[str, ...] = ()

    @property
    def bounded(self) -> bool:
        """Whether its budget is finite."""
        return self.threat is None or math.isfinite(self.threat.eps)

    def counts_under(self, threat: Threat) -> bool:
        """Whether it counts in the worst case under a threat: only if its own budget is not larger.

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
        """The same attack with at most that many images per forward pass, if it is AutoAttack, which has its own."""
        suite = self.attack
        if not isinstance(suite, AutoAttackSuite) or suite.batch_size <= batch_size:
            return self
        return replace(self, attack=replace(suite, batch_size=batch_size))

    def is_defined_on(self, num_classes: int, image_shape: Sequence[int], threat: Threat) -> bool:
        """Whether the attack, or some part of it, can run on such data; the arguments are those of :meth:`for_data`.

        Example:
            >>> spec = AttackSpec("targeted", AutoAttackSuite(attacks=("apgd-t",)))
            >>> spec.is_defined_on(2, (3, 32, 32), Threat.parse("Linf:8/255"))
            False
        """
        suite = self.attack
        if not isinstance(suite, AutoAttackSuite):
            return True
        return len(suite.undefined_parts(num_classes, image_shape, self.threat or threat)) < len(set(suite.parts))

    def for_data(self, num_classes: int, image_shape: Sequence[int], threat: Threat) -> AttackSpec:
        """The same attack without the parts of AutoAttack that are not defined on such data.

        Args:
            num_classes: K.
            image_shape: ``(C, H, W)``.
            threat: Of the evaluation; replaced by the attack's own threat if it has one.

        Raises:
            InputError: If no part can run.

        Example:
            >>> spec = AttackSpec("AutoAttack", AutoAttackSuite()).for_data(2, (3, 32, 32), Threat.parse("Linf:8/255"))
            >>> spec.attack.parts, spec.left_out
            (('apgd-ce', 'fab-t', 'square'), ('apgd-t needs at least 4 classes, got 2',))
        """
        suite = self.attack
        if not isinstance(suite, AutoAttackSuite):
            return self
        undefined = suite.undefined_parts(num_classes, image_shape, self.threat or threat)
        reasons = tuple(f"{part} {reason}" for part, reason in undefined.items())
        if not reasons:
            return self
        parts = tuple(part for part in suite.parts if part not in undefined)
        if not parts:
            raise InputError(f"{self.name} cannot run on these data, {'; '.join(reasons)}: choose other attacks")
        return replace(self, attack=replace(suite, attacks=parts), left_out=reasons)

    def describe(self) -> str:
        """The spec as a sentence, for records."""
        images = "all images" if self.attack_all else "the images classified correctly"
        limits = "" if self.bounded else "; without a budget"
        together = "" if self.batch_size is None else f"; in batches of {self.batch_size}"
        missing = f"; without parts that are not defined here: {'; '.join(self.left_out)}" if self.left_out else ""
        return f"{self.name}: attacks {self.aim}; labels: {self.labels.value}; on {images}{limits}{together}{missing}."
