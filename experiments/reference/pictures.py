"""What measured adapters make of scenes and of photographs, beside bicubic and hq."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablations.plan import build
from experiments.reference.measure import Workplace
from experiments.reference.recipes import Recipe
from experiments.reference.table import COMPARED
from experiments.tiny.pictures import sheet
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.guidance.registry import get_guidance
from megasr.images import to_uint8, upsample_lq, write_png
from megasr.training.module import MegaSRModule


@torch.no_grad()
def draw_pictures(names: Sequence[str], images: str, seed: int, rows: int, place: Workplace, path: Path) -> None:
    """Restore evaluation images with the adapters that `measure` has kept, and write a sheet as PNG.

    Args:
        names: recipes, from left to right; the images are those of the first one.
        images: `scenes` are the recipe's own evaluation set, `photographs` are held-out photographs, degraded alike.
        seed: of the runs.
        rows: number of images.
        place: where the runs lie.
        path: of the PNG.

    Raises:
        UsageError: a recipe is unknown, or needs exact maps, which photographs do not have.
        MegaSRError: a recipe has not been measured with this seed here.
    """
    recipes = [place.load(name) for name in names]
    if images == "photographs":
        for recipe in recipes:
            _refuse_exact_maps(recipe)
    adapters = {recipe.name: _load(recipe, seed, place) for recipe in recipes}
    data, evaluator = _data(recipes[0], images, rows, place), Evaluator(place.protocol)
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    for batch in data.val_dataloader():
        batch = data.on_after_batch_transfer(batch, 0)
        lq, hq, keys = batch["lq"].float(), batch["hq"], batch["keys"]
        made = {"bicubic": upsample_lq(lq, data.scale_factor)}
        made |= {name: module.restore(batch).float() for name, module in adapters.items()}
        scores = {name: evaluator.rows(sr, hq, keys) for name, sr in made.items()}
        nearest = torch.nn.functional.interpolate(lq, scale_factor=data.scale_factor, mode="nearest")
        for i, key in enumerate(keys):
            tiles += [to_uint8(columns[i]) for columns in (nearest, *made.values(), hq)]
            captions += [key, *(_caption(name, rows_of[i]) for name, rows_of in scores.items()), "hq"]
    write_png(sheet(tiles, captions, columns=len(adapters) + 3), path)


def _refuse_exact_maps(recipe: Recipe) -> None:
    exact = [name for name in recipe.config["model"]["adapter"]["guidance"] if get_guidance(name).source == "batch"]
    if exact:
        raise UsageError(f"{recipe.name} needs {', '.join(exact)}, which photographs do not have: show it on scenes")


def _load(recipe: Recipe, seed: int, place: Workplace) -> Any:
    path = place.runs / recipe.plan(seed).run_id / "adapter.ckpt"
    if not path.is_file():
        raise MegaSRError(
            f"{path}: there is none; run `python -m experiments.reference measure {recipe.name} --seeds {seed}` here "
            "(a seed that is recorded elsewhere is not run again: take another --references folder)"
        )
    return MegaSRModule.from_checkpoint(path).eval()


def _data(recipe: Recipe, images: str, rows: int, place: Workplace) -> Any:
    config = recipe.config["data"]
    arguments = {**config["init_args"], "eval_samples": rows}
    if images == "photographs":
        config = {"class_path": "PhotoDataModule"}
        arguments.pop("pool", None)
    data = build(place.classes, {"data": {**config, "init_args": arguments}}).data
    data.setup("validate")
    return data


def _caption(name: str, row: Any) -> str:
    return " ".join([name.rpartition("/")[2], *(f"{metric} {row[metric]:.3f}" for metric in COMPARED if metric in row)])
