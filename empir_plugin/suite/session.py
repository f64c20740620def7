"""The report of a session: every case, and the records they add up to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.evaluation.identity import model_fingerprint, now, settings_fingerprint
from empir_plugin.evaluation.record import Record, merge_compatible, merge_records, parse_record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.suite.case import Case, named_attacks


@dataclass
class _Latest:
    """What was made last, and of what."""

    key: Hashable = None
    value: Any = None

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if self.value is None or key != self.key:
            self.key, self.value = None, None  # the old one goes before the new one comes: models are large
            self.key, self.value = key, make()
        return self.value


@dataclass
class Bench:
    """Evaluates cases in turn; keeps the model and the data at hand, and what each attack left of them.

    Example:
        >>> bench, case = Bench(), Case(model="cifarconv-w2a2", attack=("fgsm",), n_examples=4)
        >>> bench.record(case, bench.model(case), bench.data(case)).data["n"]
        4
    """

    _model: _Latest = field(default_factory=_Latest)
    _data: _Latest = field(default_factory=_Latest)
    _done: dict[Hashable, Record] = field(default_factory=dict)
    _subject: tuple[Any, Any] = (None, None)

    def model(self, case: Case) -> nn.Module:
        """The named model of a case; see :meth:`Case.load_model`."""
        key = case.model, case.dataset, str(case.budget.norm), str(case.checkpoint)
        return self._model.get(key, case.load_model)

    def data(self, case: Case) -> ImageSet:
        """The images of a case; see :meth:`Case.load_data`."""
        key = case.model, case.dataset, str(case.data), case.n_examples
        return self._data.get(key, case.load_data)

    def check(self, case: Case) -> None:
        """Raise what a case with a named model would raise before its first attack."""
        _ = case.settings, case.plan, case.budget
        for attack in case.attack:
            if isinstance(attack, str):
                named_attacks(attack, nn.Identity())
        self.model(case)
        self.data(case)

    def record(self, case: Case, model: nn.Module, data: ImageSet) -> Record:
        """Evaluate a case.

        Args:
            case: What is asked for.
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
            data: Images and true labels.

        Raises:
            InputError: If something asked for does not exist or makes no sense.
            EvaluationError: If the evaluation cannot be trusted or cannot go on.
        """
        if len(case.attack) < 1 or case.store is not None or not all(isinstance(each, str) for each in case.attack):
            return _evaluated(case, model, data)
        if self._subject[0] is not model or self._subject[1] is not data:
            self._subject = model, data
            self._done.clear()
        state = _state(model)
        return merge_records([self._one(replace(case, attack=(name,)), model, data, state) for name in case.attack])

    def _one(self, case: Case, model: nn.Module, data: ImageSet, state: Hashable) -> Record:
        key = state, case.model, case.attack, str(case.budget), case.seed, case.batch_size, case.device
        if key not in self._done:
            self._done[key] = _evaluated(case, model, data)
        return self._done[key]


def _state(model: nn.Module) -> Hashable:
    """What changes when a model is changed in place, by a test that trains or quantizes it for instance."""
    try:
        return model_fingerprint(model), settings_fingerprint(model)
    except InputError:
        return object()  # equal to nothing: what has no name is evaluated each time


def _evaluated(case: Case, model: nn.Module, data: ImageSet) -> Record:
    name = case.model or type(model).__name__
    return evaluate(
        model,
        data,
        case.budget,
        case.planned(model),
        protocol=case.plan,
        name=name,
        settings=case.settings,
        store=case.store,
        images=None if case.adv_out is None else case.images_file(name, _subject(model, data)),
    )


def _subject(model: nn.Module, data: ImageSet) -> str:
    return f"{model_fingerprint(model)}|{data.fingerprint}"


SCHEMA = 1


def session_report(rows: Sequence[Mapping[str, Any]], exit_status: int) -> dict[str, Any]:
    """What ``--rb-json`` holds.

    Args:
        rows: Cases in order, each with its ``outcome`` and, unless it ended before, its ``record`` as a table.
        exit_status: Of pytest.

    Returns:
        ``schema``, ``finished``, ``exit_status``; ``cases``, with the numbers of each; and ``records``: run records,
        each over all attacks of the session on one model and data set under one threat, so that its worst case is, per
        image, that of all of them.
    """
    records = [parse_record(row["record"]) for row in rows if "record" in row]
    return {
        "schema": SCHEMA,
        "finished": now(),
        "exit_status": exit_status,
        "cases": [_case(row) for row in rows],
        "records": [asdict(record) for record in merge_compatible(records)],
    }


def _case(row: Mapping[str, Any]) -> dict[str, Any]:
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
        "seconds": round(sum(attack["seconds"] for attack in record["attacks"]), 2),
    }
