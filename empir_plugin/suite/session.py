"""A pytest session's evaluations: each model, data set and attack once, and the report over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.evaluation.identity import model_fingerprint, now, settings_fingerprint
from empir_plugin.evaluation.named_attacks import named_attacks
from empir_plugin.evaluation.record import Record, merge_compatible, merge_records, parse_record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.suite.case import Case


@dataclass
class _LastLoaded:
    """A cache of one value, the one loaded last."""

    key: Hashable = None
    value: Any = None

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        if self.value is None or key != self.key:
            self.key, self.value = None, None  # free the old value before loading the next: models are large
            self.key, self.value = key, load()
        return self.value


@dataclass
class EvaluationSession:
    """Evaluates cases one after another; keeps the last model and data, and the finished evaluations on them.

    Example:
        >>> session, case = EvaluationSession(), Case(model="cifarconv-w2a2", attack=("fgsm",), n_examples=4)
        >>> session.record(case, session.model(case), session.data(case)).data["n"]
        4
    """

    _model: _LastLoaded = field(default_factory=_LastLoaded)
    _loaded_state: tuple[Any, Hashable] = (None, None)
    _data: _LastLoaded = field(default_factory=_LastLoaded)
    _finished: dict[Hashable, Record] = field(default_factory=dict)
    _finished_on: tuple[Any, Any] = (None, None)

    def model(self, case: Case) -> nn.Module:
        """The model that a case names; see :meth:`Case.load_model`."""
        key = case.model, case.dataset, str(case.budget.norm), str(case.checkpoint), case.ema
        model = self._model.get(key, case.load_model)
        if model is not self._loaded_state[0]:
            self._loaded_state = model, _model_state(model)
        return model

    def data(self, case: Case) -> ImageSet:
        """The images of a case; see :meth:`Case.load_data`."""
        key = case.model, case.dataset, str(case.data), case.n_examples
        return self._data.get(key, case.load_data)

    def check(self, case: Case) -> None:
        """Raise the errors that a case with a named model would raise before its first attack."""
        _ = case.settings, case.plan, case.budget
        for attack in case.attack:
            if isinstance(attack, str):
                named_attacks(attack, nn.Identity())
        self.model(case)
        self.data(case)

    def record(self, case: Case, model: nn.Module, data: ImageSet) -> Record:
        """Evaluate a case; an attack that has already run on this model and data is not run again.

        Args:
            case: What to evaluate.
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
            data: Images and true labels.

        Raises:
            InputError: If the case names something that does not exist, or has an invalid value, or it names a model
                and this is another one.
            EvaluationError: If the evaluation cannot be trusted or cannot continue.
        """
        if case.model:
            self._check_is_named(case.model, model)
        if len(case.attack) < 1 or case.store is not None or not all(isinstance(each, str) for each in case.attack):
            return _evaluate(case, model, data)
        if self._finished_on[0] is not model or self._finished_on[1] is not data:
            self._finished_on = model, data
            self._finished.clear()
        state = _model_state(model)
        return merge_records(
            [self._record_once(replace(case, attack=(name,)), model, data, state) for name in case.attack]
        )

    def _check_is_named(self, name: str, model: nn.Module) -> None:
        """Refuse to write a record in the name of a model about another one, such as that of a fixture."""
        loaded, state = self._loaded_state
        if model is not loaded:
            raise InputError(
                f"the test names the model {name!r}, and its fixture rb_model returns another one, a "
                f"{type(model).__name__}: leave model= out of the marker (--rb-model), or remove the fixture"
            )
        if isinstance(state, tuple) and _model_state(model) != state:
            raise InputError(
                f"the test names the model {name!r}, whose {type(model).__name__} a fixture or an earlier test has "
                "changed in place: change a copy.deepcopy() of it, in a fixture rb_model of a test that names no model"
            )

    def _record_once(self, case: Case, model: nn.Module, data: ImageSet, state: Hashable) -> Record:
        key = state, case.model, case.attack, str(case.budget), case.seed, case.batch_size, case.device
        if key not in self._finished:
            self._finished[key] = _evaluate(case, model, data)
        return self._finished[key]


def _model_state(model: nn.Module) -> Hashable:
    """A key that changes when a model changes in place, for instance in a test that trains or quantizes it."""
    try:
        return model_fingerprint(model), settings_fingerprint(model)
    except InputError:
        return object()  # equals no other key: a model without a fingerprint is evaluated each time


def _evaluate(case: Case, model: nn.Module, data: ImageSet) -> Record:
    name = case.model or type(model).__name__
    return evaluate(
        model,
        data,
        case.budget,
        case.attack_specs(model),
        protocol=case.plan,
        name=name,
        settings=case.settings,
        store=case.store,
        images=None if case.adv_out is None else case.images_file(name, _fingerprints(model, data)),
    )


def _fingerprints(model: nn.Module, data: ImageSet) -> str:
    return f"{model_fingerprint(model)}|{data.fingerprint}"


SCHEMA = 1


def session_report(rows: Sequence[Mapping[str, Any]], exit_status: int) -> dict[str, Any]:
    """The report of a session, as ``--rb-json`` writes it.

    Args:
        rows: Cases in order, each with its ``outcome`` and, unless it ended before the evaluation, its ``record``.
        exit_status: Of pytest.

    Returns:
        ``schema``, ``finished``, ``exit_status``; ``cases``, each with its numbers; and ``records``: run records, one
        for each model, data set and threat. A record covers all attacks of the session, and so does its per-image
        worst case.
    """
    records = [parse_record(row["record"]) for row in rows if "record" in row]
    return {
        "schema": SCHEMA,
        "finished": now(),
        "exit_status": exit_status,
        "cases": [_case_row(row) for row in rows],
        "records": [asdict(record) for record in merge_compatible(records)],
    }


def _case_row(row: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: value for key, value in row.items() if key not in ("record", "order")}
    if "record" not in row:
        return about
    record = row["record"]
    return {
        **about,
        "model": record["model"]["name"],
        "dataset": record["data"]["name"],
        "threat": record["threat"],
        "n_examples": record["data"]["n"],
        "clean_accuracy": record["clean_accuracy"],
        "attacks": {attack["name"]: attack["accuracy"] for attack in record["attacks"]},
        "worst_case_accuracy": record["worst_case_accuracy"],
        "seconds": round(math.fsum(attack["seconds"] for attack in record["attacks"]), 2),
    }
