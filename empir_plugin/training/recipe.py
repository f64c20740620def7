"""Training recipes: which networks are trained, on which data set and how, as dataclasses read from TOML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from empir_plugin._files import tables
from empir_plugin._files.names import check_name
from empir_plugin._files.tables import build, check_keys, table_of, tables_of
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.training.checkpoint import STEMS
from empir_plugin.training.objectives import DistilledFrom
from empir_plugin.training.schedules import FinishRecipe, JointRecipe, MemberRecipe


@dataclass(frozen=True)
class HoldOut:
    """Held-out images, the last of the training set, to select between averaged and last weights of each member.

    Args:
        images: Number of images.
        threat: Select by accuracy under PGD within this threat; by clean accuracy if left out.
        steps: Steps of PGD.

    Raises:
        InputError: If a number is below 1.
    """

    images: int
    threat: Threat | None = None
    steps: int = 20

    def __post_init__(self) -> None:
        if self.images < 1 or self.steps < 1:
            raise InputError(f"images and steps must be 1 or more, got {self.images} and {self.steps}")


@dataclass(frozen=True)
class Recipe:
    """Networks of one architecture, trained one after the other on one data set, and then optionally together.

    Args:
        name: Name of the ensemble.
        architecture: Name for :func:`empir_plugin.training.networks.initial_network`.
        dataset: ``"mnist"``, ``"cifar10"`` or another name known to :func:`empir_plugin.evaluation.load_images`.
        members: The members, in order of training and of their place in the ensemble.
        joint: Schedule of training them together; None if they are not.
        holdout: Part of the training set that is held out; None for none.
        finish: Schedule of training them together once more after ``joint``; None if they are not.

    Raises:
        InputError: If a name is not plain (see :func:`~empir_plugin._files.names.check_name`), two files would have the
            same name, a member refers to one that is not trained before it, no member is in
            the ensemble, a member would not be trained at all, or there is ``finish`` without ``joint``.

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
        check_name("a recipe", self.name)
        self._check_files()
        earlier: set[str] = set()
        for member in self.members:
            for key, other in _references(member).items():
                if other not in earlier:
                    raise InputError(f"{key} of member {member.name!r} must name an earlier member, got {other!r}")
            if not member.epochs and (self.joint is None or not member.in_ensemble):
                raise InputError(f"epochs of member {member.name!r} must be positive, got 0: no other table trains it")
            earlier.add(member.name)
        if not any(member.in_ensemble for member in self.members):
            raise InputError("a recipe must have at least one [[members]] table that is in_ensemble, got none")
        if self.finish and not self.joint:
            raise InputError(
                "[finish] needs a table [joint] before it, got none: rename [finish] to [joint], or leave it out"
            )
        for table, stage in self.stages.items():
            if isinstance(stage.objective, DistilledFrom) and stage.objective.teacher not in earlier:
                raise InputError(f"teacher of [{table}] must name a member, got {stage.objective.teacher!r}")

    def _check_files(self) -> None:
        """Check that no two files of a run have the same name, not even where case makes no difference."""
        taken = {self.name.lower()}
        for member in self.members:
            if member.name.lower() in taken:
                raise InputError(
                    f"the name {member.name!r} is used twice in this recipe: rename one, files are named by it"
                )
            taken.add(member.name.lower())
        for run in (*self.members, *self.stages.values()):
            for suffix in STEMS:
                if (stem := f"{run.run}{suffix}".lower()) in taken:
                    raise InputError(f"the name {stem!r} is that of a checkpoint of this recipe: rename the member")

    @property
    def stages(self) -> dict[str, JointRecipe]:
        """The schedules of training all members together, in order, by the name of their table."""
        stages = {"joint": self.joint, "finish": self.finish}
        return {table: stage for table, stage in stages.items() if stage is not None}

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a recipe from TOML text.

        ``[defaults]`` applies to every member, and to ``[joint]`` and ``[finish]`` where these have the key.
        ``[objective]`` applies to every table without an ``objective`` of its own. With ``extends`` a recipe changes
        another one: see :func:`~empir_plugin.training.recipe.resolve_extends`.

        Raises:
            InputError: If the text is not TOML, or a key is missing, unknown or of the wrong kind.
        """
        try:
            table = resolve_extends(tables.loads(text))
        except tables.TOMLDecodeError as error:
            raise InputError(f"a recipe must be TOML: {error}") from error
        known = {"defaults", "objective", "joint", "finish", "holdout"}
        check_keys(table, required={"name", "architecture", "dataset", "members"}, known=known, where="recipe")
        shared = {**table_of(table.get("defaults", {}), "[defaults]")}
        if "objective" in table:
            shared["objective"] = table["objective"]
        members = tuple(_member({**shared, **row}) for row in tables_of(table["members"], "[[members]]"))
        kinds = {"joint": JointRecipe, "finish": FinishRecipe}
        stages = {key: _stage(kind, key, table, shared) for key, kind in kinds.items() if key in table}
        parts = {key: table[key] for key in ("name", "architecture", "dataset", "holdout") if key in table}
        return build(cls, parts, "recipe", members=members, **stages)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe from a file.

        Raises:
            InputError: If there is no such file, or it is no recipe.
        """
        try:
            if not path.is_file():
                raise InputError(f"no recipe file at {path}")
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"a recipe must be TOML in UTF-8, {path} is not: {error}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}): check the path") from error
        return cls.parse(text)


def _references(member: MemberRecipe) -> dict[str, str]:
    """Names of the members that a member needs to be trained first."""
    references = {"start": member.start} if member.start else {}
    if isinstance(member.objective, DistilledFrom):
        references["teacher"] = member.objective.teacher
    return references


def _member(table: Mapping[str, Any]) -> MemberRecipe:
    return build(MemberRecipe, table, f"member {table.get('name', '?')!r}")


def _stage(kind: type[JointRecipe], key: str, table: Mapping[str, Any], shared: Mapping[str, Any]) -> JointRecipe:
    known = {field.name for field in fields(kind)}
    defaults = {name: value for name, value in shared.items() if name in known}
    settings = {**defaults, **table_of(table[key], f"[{key}]")}
    return build(kind, settings, f"[{key}]", name=str(table["name"]))


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes in this package.

    Example:
        >>> "empir-cifar" in recipe_names()
        True
    """
    folder = files("empir_plugin.training").joinpath("recipes")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe in this package.

    Raises:
        InputError: If there is no such recipe.
    """
    if name not in recipe_names():
        raise InputError(f"no recipe {name!r}: use one of {', '.join(recipe_names())}")
    return (files("empir_plugin.training") / "recipes" / f"{name}.toml").read_text("utf-8")


def find_recipe(text: str) -> Recipe:
    """A recipe of this package by name, or one from a TOML file by path.

    Raises:
        InputError: If it is neither, or the file is no recipe.

    Example:
        >>> [member.name for member in find_recipe("empir-cifar").members]
        ['cifarconv-w4a2', 'cifarconv-w2a2', 'cifarconv-fp']
    """
    if text in recipe_names():
        return Recipe.parse(recipe_text(text))
    if text.endswith(".toml"):
        return Recipe.read(Path(text))
    raise InputError(f"no recipe {text!r}: use one of {', '.join(recipe_names())}, or a path that ends in .toml")


_OPTIONAL = ("joint", "finish", "holdout")
"""Optional tables of a recipe."""
_MERGED = ("defaults", *_OPTIONAL)
"""Tables that an extending recipe changes key by key; it replaces everything else as a whole."""


def resolve_extends(table: Mapping[str, Any], text_of: Callable[[str], str] = recipe_text) -> Mapping[str, Any]:
    """Replace ``extends`` in a recipe's table by the recipe it names, with the table's own changes applied.

    Keys replace those of the base; ``[defaults]``, ``[joint]``, ``[finish]`` and ``[holdout]`` are merged key by key. A
    ``[[members]]`` table with the name of a member of the base changes that member; any other adds a member at the end.
    ``without`` lists members and tables to leave out. Runs that the changes do not affect can reuse the checkpoints of
    the base.

    Args:
        table: The recipe's table; returned as it is if it extends nothing.
        text_of: Returns the TOML text of a recipe by name.

    Raises:
        InputError: If the base does not exist, extends another recipe, or lacks what is left out, or if the name is
            the base's.

    Example:
        >>> table = {"extends": "empir-cifar-at", "name": "pair", "without": ["cifarconv-at-w4a4-b"]}
        >>> [member["name"] for member in resolve_extends(table)["members"]]
        ['cifarconv-at-fp', 'cifarconv-at-w4a4']
    """
    if "extends" not in table:
        return table
    changes = dict(table)
    base = _base(changes.pop("extends"), text_of)
    if changes.get("name", base["name"]) == base["name"]:
        raise InputError(f"a recipe that extends {base['name']} needs a name of its own, got {changes.get('name')!r}")
    left_out = _left_out(changes.pop("without", []), base)
    members = _merge_members(base["members"], tables_of(changes.pop("members", []), "[[members]]"))
    merged = {key: {**base.get(key, {}), **table_of(changes[key], f"[{key}]")} for key in _MERGED if key in changes}
    whole = {**base, **changes, **merged, "members": [each for each in members if each.get("name") not in left_out]}
    return {key: value for key, value in whole.items() if key not in left_out}


def _base(name: Any, text_of: Callable[[str], str]) -> Mapping[str, Any]:
    if not isinstance(name, str):
        raise InputError(f"extends must name a recipe, got {name!r}")
    base = tables.loads(text_of(name))
    if "extends" in base:
        raise InputError(f"{name} itself extends {base['extends']}: extend {base['extends']} instead")
    return base


def _left_out(names: Any, base: Mapping[str, Any]) -> frozenset[str]:
    known = [member["name"] for member in base["members"]] + [key for key in _OPTIONAL if key in base]
    if not isinstance(names, list) or not all(name in known for name in names):
        raise InputError(f"without must be a list of names among {', '.join(known)}, got {names!r}")
    return frozenset(names)


def _merge_members(base: list[Mapping[str, Any]], changes: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    changed = {each.get("name"): each for each in changes}
    if len(changed) != len(changes):
        raise InputError("every [[members]] table of a recipe needs its own name: a name is missing or used twice")
    known = {member["name"] for member in base}
    kept = ({**member, **changed.get(member["name"], {})} for member in base)
    return [*kept, *(each for each in changes if each.get("name") not in known)]
