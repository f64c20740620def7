"""Training recipes as data: what is trained, on what, how; read from TOML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from empir_plugin._files import tables
from empir_plugin._files.tables import build, check_keys, table_of
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.activations import Activations
from empir_plugin.models.precision import Precision
from empir_plugin.training.objectives import DistilledFrom
from empir_plugin.training.schedules import FinishRecipe as FinishRecipe
from empir_plugin.training.schedules import JointRecipe as JointRecipe
from empir_plugin.training.schedules import MemberRecipe as MemberRecipe
from empir_plugin.training.schedules import parse_objective

_OPTIONAL = ("joint", "finish", "holdout")
"""Tables a recipe can do without."""
_MERGED = ("defaults", *_OPTIONAL)
"""Tables of which a change replaces single keys; of everything else it replaces the whole."""


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that travel with this package.

    Example:
        >>> "empir-cifar" in recipe_names()
        True
    """
    folder = files("empir_plugin.training").joinpath("recipes")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe of this package.

    Raises:
        InputError: If there is no such recipe.
    """
    if name not in recipe_names():
        raise InputError(f"no recipe {name!r}: use one of {', '.join(recipe_names())}")
    return (files("empir_plugin.training") / "recipes" / f"{name}.toml").read_text("utf-8")


def spelled_out(table: Mapping[str, Any], text_of: Callable[[str], str] = recipe_text) -> Mapping[str, Any]:
    """A recipe's table without ``extends``: that of the recipe it extends, with its own changes.

    Keys replace those of the base; ``[defaults]``, ``[joint]``, ``[finish]`` and ``[holdout]`` replace key by key. A
    ``[[members]]`` table of the base's name changes that member, another one adds a member at the end. ``without``
    lists members and tables to leave out. A run that the changes do not reach is the base's own, and can take over its
    checkpoint.

    Args:
        table: What the file says; it is given back as it is if it extends nothing.
        text_of: The TOML text of the recipe of a name.

    Raises:
        InputError: If the base is no recipe of its own or has none of what is left out, or the name is the base's.

    Example:
        >>> found = spelled_out({"extends": "empir-cifar-at", "name": "pair", "without": ["cifarconv-at-w4a4-b"]})
        >>> [member["name"] for member in found["members"]]
        ['cifarconv-at-fp', 'cifarconv-at-w4a4']
    """
    if "extends" not in table:
        return table
    changes = dict(table)
    base = _base(changes.pop("extends"), text_of)
    if changes.get("name", base["name"]) == base["name"]:
        raise InputError(f"a recipe that extends {base['name']} needs a name of its own, got {changes.get('name')!r}")
    left_out = _left_out(changes.pop("without", []), base)
    members = _merged_members(base["members"], changes.pop("members", []))
    merged = {key: {**base.get(key, {}), **table_of(changes[key], f"[{key}]")} for key in _MERGED if key in changes}
    whole = {**base, **changes, **merged, "members": [each for each in members if each.get("name") not in left_out]}
    return {key: value for key, value in whole.items() if key not in left_out}


def _base(name: Any, text_of: Callable[[str], str]) -> Mapping[str, Any]:
    if not isinstance(name, str):
        raise InputError(f"extends must name a recipe, got {name!r}")
    base = tables.loads(text_of(name))
    if "extends" in base:
        raise InputError(f"{name} extends {base['extends']} itself: extend that")
    return base


def _left_out(names: Any, base: Mapping[str, Any]) -> frozenset[str]:
    tables = [key for key in _OPTIONAL if key in base]
    known = [member["name"] for member in base["members"]] + tables
    if not isinstance(names, list) or not all(name in known for name in names):
        raise InputError(f"without must be a list of names among {', '.join(known)}, got {names!r}")
    return frozenset(names)


def _merged_members(base: list[Mapping[str, Any]], changes: Any) -> list[Mapping[str, Any]]:
    if not isinstance(changes, list):
        raise InputError(f"members must be [[members]] tables, got {changes!r}")
    changed = {table_of(each, "[[members]]").get("name"): each for each in changes}
    if len(changed) != len(changes):
        raise InputError("every [[members]] table of a recipe needs a name of its own: one is there twice, or missing")
    known = {member["name"] for member in base}
    kept = ({**member, **changed.get(member["name"], {})} for member in base)
    return [*kept, *(each for each in changes if each.get("name") not in known)]


@dataclass(frozen=True)
class HoldOut:
    """The last images of the training set, kept back to choose between averaged and last weights of every member.

    Args:
        images: How many.
        threat: The choice is for accuracy under PGD within it; for clean accuracy if left out.
        steps: Of PGD.

    Raises:
        InputError: If there is no image or no step.
    """

    images: int
    threat: Threat | None = None
    steps: int = 20

    def __post_init__(self) -> None:
        if self.images < 1 or self.steps < 1:
            raise InputError(f"[holdout] needs images and steps of 1 or more, got {self.images} and {self.steps}")


@dataclass(frozen=True)
class Recipe:
    """Networks of one architecture, trained one after the other on one data set, and then, if wanted, together.

    Args:
        name: The ensemble's name.
        architecture: One for :func:`empir_plugin.training.networks.first_network`.
        dataset: ``"mnist"``, ``"cifar10"`` or another name :func:`empir_plugin.evaluation.load_images` knows.
        members: In the order of training, which is the ensemble's.
        joint: How they are trained together; None if they are not.
        holdout: What part of the training set is kept back; None for nothing.
        finish: How they are trained together after ``joint``; None if they are not.

    Raises:
        InputError: If two members share a name, one refers to another that does not come before it, none is in the
            ensemble, one would not be trained at all, or ``finish`` has no ``joint`` to go on from.

    Example:
        >>> recipe = Recipe.parse(
        ...     '''
        ... name = "tiny"
        ... architecture = "mnistconv"
        ... dataset = "mnist"
        ... [defaults]
        ... epochs = 1
        ... [objective]
        ... kind = "adversarial"
        ... adversary = { kind = "pgd", threat = "Linf:0.3", steps = 10 }
        ... [[members]]
        ... name = "tiny-w2a4"
        ... precision = "w2a4"
        ... seed = 7
        ... '''
        ... )
        >>> recipe.members[0].precision, recipe.members[0].epochs
        (Precision(weight_bits=2, activation_bits=4), 1)
    """

    name: str
    architecture: str
    dataset: str
    members: tuple[MemberRecipe, ...]
    joint: JointRecipe | None = None
    holdout: HoldOut | None = None
    finish: FinishRecipe | None = None

    def __post_init__(self) -> None:
        earlier: set[str] = set()
        for member in self.members:
            if member.name in earlier or member.name == self.name:
                raise InputError(f"two things of this recipe are called {member.name!r}: their files would be one")
            for key, other in _references(member).items():
                if other not in earlier:
                    raise InputError(f"{key} of member {member.name!r} must name an earlier member, got {other!r}")
            if not member.epochs and (self.joint is None or not member.in_ensemble):
                raise InputError(f"epochs of member {member.name!r} must be positive, got 0: nothing else trains it")
            earlier.add(member.name)
        if not any(member.in_ensemble for member in self.members):
            raise InputError("a recipe must have at least one [[members]] table that is in_ensemble, got none")
        if self.finish and not self.joint:
            raise InputError("[finish] goes on from [joint], which is not there: call it [joint], or leave it out")
        for table, stage in self.stages.items():
            if isinstance(stage.objective, DistilledFrom) and stage.objective.teacher not in earlier:
                raise InputError(f"teacher of [{table}] must name a member, got {stage.objective.teacher!r}")

    @property
    def stages(self) -> dict[str, JointRecipe]:
        """The runs of all members together, in their order, each under the name of its table."""
        tables = {"joint": self.joint, "finish": self.finish}
        return {table: stage for table, stage in tables.items() if stage is not None}

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a recipe from TOML text.

        ``[defaults]`` holds for every member, and its keys that ``[joint]`` and ``[finish]`` have for those as well;
        ``[objective]`` for whatever has no ``objective`` of its own. With ``extends`` it is another recipe, changed:
        see :func:`~empir_plugin.training.recipe.spelled_out`.

        Raises:
            InputError: If the text is no TOML, or a key is missing, unknown or of the wrong kind.
        """
        try:
            table = spelled_out(tables.loads(text))
        except tables.TOMLDecodeError as error:
            raise InputError(f"a recipe must be TOML: {error}") from error
        known = {"defaults", "objective", "joint", "finish", "holdout"}
        check_keys(table, required={"name", "architecture", "dataset", "members"}, known=known, where="recipe")
        shared = {**table_of(table.get("defaults", {}), "[defaults]")}
        if "objective" in table:
            shared["objective"] = table["objective"]
        plain = {key: table[key] for key in ("name", "architecture", "dataset")}
        stages = {"joint": JointRecipe, "finish": FinishRecipe}
        made_of = {key: _stage(kind, key, table, shared) for key, kind in stages.items() if key in table}
        members = _members(table["members"], shared)
        return build(cls, plain, "recipe", members=members, **made_of, holdout=_holdout(table))

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe from a file.

        Raises:
            InputError: If there is no such file, or what is in it is no recipe.
        """
        if not path.is_file():
            raise InputError(f"no recipe file at {path}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"a recipe must be TOML in UTF-8, {path} is not: {error}") from error
        return cls.parse(text)


def _references(member: MemberRecipe) -> dict[str, str]:
    found = {"start": member.start} if member.start else {}
    if isinstance(member.objective, DistilledFrom):
        found["teacher"] = member.objective.teacher
    return found


def _members(tables: Any, shared: Mapping[str, Any]) -> tuple[MemberRecipe, ...]:
    if not isinstance(tables, list) or not tables:
        raise InputError("a recipe must have at least one [[members]] table, got none")
    return tuple(_member({**shared, **table_of(table, "[[members]]")}) for table in tables)


def _member(table: dict[str, Any]) -> MemberRecipe:
    where = f"member {table.get('name', '?')!r}"
    known = {field.name for field in fields(MemberRecipe)}
    check_keys(table, required={"name", "precision", "seed", "epochs"}, known=known, where=where)
    given: dict[str, Any] = {"precision": Precision.parse(str(table.pop("precision")))}
    if "activations" in table:
        given["activations"] = Activations.parse(str(table.pop("activations")))
    return build(MemberRecipe, table, where, **given, **_objective(table, where))


def _stage(kind: type[JointRecipe], key: str, table: Mapping[str, Any], shared: Mapping[str, Any]) -> JointRecipe:
    where, known = f"[{key}]", {field.name for field in fields(kind)}
    fitting = {name: value for name, value in shared.items() if name in known}
    settings = {**fitting, **table_of(table[key], where)}
    return build(kind, settings, where, name=str(table["name"]), **_objective(settings, where))


def _objective(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The objective a table names, taken out of it."""
    return {"objective": parse_objective(table.pop("objective", {"kind": "clean"}), f"objective of {where}")}


def _holdout(table: Mapping[str, Any]) -> HoldOut | None:
    if "holdout" not in table:
        return None
    settings = dict(table_of(table["holdout"], "[holdout]"))
    threat = Threat.parse(str(settings.pop("threat"))) if "threat" in settings else None
    return build(HoldOut, settings, "[holdout]", threat=threat)
