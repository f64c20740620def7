"""What ``[finish]`` goes on from: the members' weight files and reports, as ``[joint]`` leaves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.training.checkpoint import REPORT
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.schedules import MemberRecipe, reported, settings_of
from empir_plugin.training.trained import load_trained_member
from empir_plugin.training.workshop import Result


def before_finish(
    recipe: Recipe, folder: Path, images: ImageSet, device: torch.device | None = None
) -> dict[str, Result]:
    """All members of a recipe as they are before its ``[finish]``, from their files.

    The weights are those in the files: latent ones of low precision are some that quantize to these.

    Args:
        recipe: What is trained.
        folder: A packed weight file and a report for every member.
        images: Some of the recipe's data set.
        device: Where the members go; the CPU by default.

    Raises:
        WeightsError: If a file is missing, damaged, or not what this recipe trains before ``[finish]``.
    """
    results = (_result(recipe, member, folder, images) for member in recipe.members)
    return {result.recipe.name: replace(result, model=result.model.to(device)) for result in results}


def _result(recipe: Recipe, member: MemberRecipe, folder: Path, images: ImageSet) -> Result:
    told = REPORT.read(folder / f"{member.name}.json", lambda table: _checked(recipe, member, table))
    model = load_trained_member(recipe, folder, member.name, images=images, expected_sha256=told["sha256"])
    stage = told.get("joint", {}).get("history", [])
    kept = {key: told[key] for key in ("joint", "holdout") if key in told}
    return Result(member, model, (*told["history"], *stage), kept)


def _checked(recipe: Recipe, member: MemberRecipe, table: dict[str, Any]) -> dict[str, Any]:
    """A report, if it is of this very training."""
    stages = {"joint": settings_of(recipe.joint)} if recipe.joint and member.in_ensemble else {}
    wanted = {"recipe": reported(member), **stages}
    found = {"recipe": table["recipe"], **{key: table[key]["recipe"] for key in ("joint", "finish") if key in table}}
    if found != wanted:
        cure = f"hand in what recipe {recipe.name} leaves before [finish]"
        raise InputError(f"member {member.name!r} was trained otherwise, or further: {cure}")
    return table
