"""Every parameter of a data module changes what the table says, and nothing else.

What all share is tried on folders; that the others pass it on is seen in their attributes.
"""

from __future__ import annotations

import inspect
import itertools
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.datamodules import (
    FolderDataModule,
    MixtureDataModule,
    PairedDataModule,
    Part,
    PhotoDataModule,
    SceneDataModule,
    ShardDataModule,
    SRDataModule,
    WorldDataModule,
)
from data_pipelines.degradations.presets import HighOrder
from data_pipelines.degradations.sampling import Blur, Jpeg, Noise, Order, Resize
from data_pipelines.shards.bake import bake
from data_pipelines.shards.baked import BakeOptions
from megasr.errors import MegaSRError, UsageError
from megasr.images import write_png
from tests.helpers.shard_sets import encoded, make_shards, pixels

Observed = dict[str, Any]
MODULES = (
    PhotoDataModule,
    SceneDataModule,
    WorldDataModule,
    FolderDataModule,
    ShardDataModule,
    MixtureDataModule,
    PairedDataModule,
)
# Evaluation has a size of its own, so that what changes the training is seen to leave it alone.
BASE = {"crop_size_px": 32, "eval_crop_size_px": 32, "batch_size": 2, "train_samples": 8, "eval_samples": 3}
STRONG = {"degradation": "realesrgan_strong"}
PLACES: dict[type, dict[str, Any]] = {
    PhotoDataModule: STRONG,
    SceneDataModule: STRONG,
    WorldDataModule: STRONG | {"photo_share": 0.0},
    FolderDataModule: STRONG | {"train_root": "{}/folder", "eval_root": "{}/eval"},
    ShardDataModule: STRONG | {"train_url": "{}/shards", "eval_url": "{}/eval"},
    MixtureDataModule: STRONG | {"parts": [Part("{}/folder", 3.0), Part("scenes")], "eval_url": "{}/eval"},
    PairedDataModule: {
        "train_root": "{}/pairs/hq",
        "train_lq_root": "{}/pairs/lq",
        "eval_root": "{}/eval-pairs/hq",
        "eval_lq_root": "{}/eval-pairs/lq",
    },
}
DRAWS = "keys hq lq params"
EVALUATION = "eval-keys eval-hq eval-lq eval-params"
# parameter -> (its other value, what that changes)
COMMON: dict[str, tuple[Any, str]] = {
    "scale_factor": (2, "lq params eval-lq eval-params"),
    "crop_size_px": (48, "hq lq"),
    "eval_crop_size_px": (48, "eval-hq eval-lq"),
    "batch_size": (4, "batches eval-batches"),
    "train_samples": (4, f"batches {DRAWS}"),
    "eval_samples": (2, f"eval-batches {EVALUATION}"),
    "num_workers": (1, "workers"),
    "seed": (1, f"order {DRAWS}"),
    "degradation": ("first_order", "lq params eval-lq eval-params"),
    "eval_degradation": ("first_order", "eval-lq eval-params"),
    "backend": ("device", "made-in-the-loader"),
    "usm_target": (True, "hq lq"),
    "min_sharpness": (9.0, f"left-out {DRAWS}"),
    "max_damaged": (0.5, "stops-at"),
    "cache_dir": ("{}/cache2", "cached"),
    "cache_gb": (1e-6, "error"),
}
PIPE = {"eval_url": "pipe:cat {}/eval/{{name}}", "cache_dir": "{}/cache"}
OWN: dict[tuple[type, str], tuple[Any, str]] = {
    (PhotoDataModule, "eval_crop_size_px"): (48, EVALUATION),  # another grid of crops, which are named by their place
    (SceneDataModule, "seed"): (1, "order hq lq params"),  # scenes are numbered
    (SceneDataModule, "pool"): (5, f"order {DRAWS}"),
    (WorldDataModule, "seed"): (1, "order hq lq params"),
    (WorldDataModule, "pool"): (5, f"order {DRAWS}"),
    (WorldDataModule, "photo_share"): (1.0, f"order {DRAWS}"),
    (WorldDataModule, "patches"): (4, "patch-tags"),
    (WorldDataModule, "photos"): ("{}/folder", f"order {DRAWS}"),
    (WorldDataModule, "photo_zoom"): (1.0, "hq lq"),
    (WorldDataModule, "maps"): (True, "maps"),
    (FolderDataModule, "train_root"): ("{}/other", f"order {DRAWS}"),
    (FolderDataModule, "eval_root"): ("{}/folder2", EVALUATION),
    (ShardDataModule, "train_url"): ("{}/other", f"order {DRAWS}"),
    (ShardDataModule, "eval_url"): ("{}/folder2", EVALUATION),
    (ShardDataModule, "baked"): ("set", f"order {DRAWS}"),
    (ShardDataModule, "baked_share"): (0.5, f"order {DRAWS}"),
    (ShardDataModule, "shuffle_shards"): (2, f"order {DRAWS}"),
    (MixtureDataModule, "parts"): ([Part("{}/folder"), Part("scenes")], f"order {DRAWS}"),
    (MixtureDataModule, "eval_url"): ("{}/folder2", EVALUATION),
    (PairedDataModule, "scale_factor"): (2, "error"),
    (PairedDataModule, "train_root"): ("{}/other-pairs/hq", "hq"),
    (PairedDataModule, "train_lq_root"): ("{}/other-pairs/lq", "lq"),
    (PairedDataModule, "eval_root"): ("{}/other-eval-pairs/hq", "eval-hq"),
    (PairedDataModule, "eval_lq_root"): ("{}/other-eval-pairs/lq", "eval-lq"),
}
# What must be set for a parameter to matter.
GIVEN: dict[str, dict[str, Any]] = {
    "patches": {"pool": 3},
    "photos": {"photo_share": 1.0},
    "photo_zoom": {"photo_share": 1.0},
    "baked_share": {"baked": "set"},
    "cache_dir": PIPE,
    "cache_gb": PIPE,
}


def parameters(module: type) -> set[str]:
    """What can be set."""
    return set(inspect.signature(module).parameters)


CASES = [
    (module, name)
    for module in MODULES
    for name in sorted(parameters(module))
    if module is FolderDataModule or (module, name) in OWN or (module is ShardDataModule and name in GIVEN)
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 60x72 px in folders, shards and pairs; number 0 of the training is flat."""
    root = tmp_path_factory.mktemp("sets")

    def image(number: int) -> np.ndarray:
        return np.full((60, 72, 3), 99, np.uint8) if number == 0 else pixels(number, 60, 72)

    for name, first, count in (("folder", 0, 6), ("folder2", 30, 3), ("eval", 20, 3), ("other", 10, 3)):
        for number in range(first, first + count):
            write_png(image(number), root / name / f"{number}.png")
    make_shards(root / "shards", [2, 2, 2, 2], lambda n: (f"s{n}", {"png": encoded(image(n))}))
    make_shards(root / "other", [2, 2], lambda n: (f"o{n}", {"png": encoded(image(n + 50))}))
    make_shards(root / "eval", [3], lambda n: (f"e{n}", {"png": encoded(image(n + 20))}))
    bake(root / "shards", "set", BakeOptions("realesrgan_strong", 4, 32, seed=5), 1)
    for name, first in (("pairs", 40), ("other-pairs", 50), ("eval-pairs", 60), ("other-eval-pairs", 70)):
        for place in range(4):
            write_png(image(first + place), root / name / "hq" / f"{name.removeprefix('other-')}-{place}.png")
            lq = pixels(first + place, 15, 18)
            write_png(lq, root / name / "lq" / f"{name.removeprefix('other-')}-{place}.png")
    return root


def placed(value: Any, root: Path) -> Any:
    """The value with {} replaced by the folder of the sets."""
    if isinstance(value, list):
        return [Part(placed(part.source, root), part.weight) for part in value]
    return value.format(root) if isinstance(value, str) else value


def observe(module: type[SRDataModule], root: Path, **settings: Any) -> Observed:
    """All that a setting may change, as values that can be compared."""
    for name in ("cache", "cache2"):
        shutil.rmtree(root / name, ignore_errors=True)
    settings = {name: placed(value, root) for name, value in {**BASE, **PLACES[module], **settings}.items()}
    try:
        data = module(**settings)
    except UsageError as error:
        return {"error": str(error)}
    loader = data.train_dataloader()
    batches = list(loader)
    seen: Observed = {
        "workers": (loader.num_workers, data.val_dataloader().num_workers),
        "made-in-the-loader": "lq" in batches[0],
    }
    seen["left-out"] = {name[:2] for batch in batches for skipped in batch.get("skipped", ()) for name in skipped}
    seen |= described([data.on_after_batch_transfer(batch, 0) for batch in batches], "")
    seen |= described(list(data.val_dataloader()), "eval-")
    seen |= {"order": data.order_fingerprint(), "stops-at": damage_that_stops(data)}
    seen["cached"] = {name: len(list((root / name).glob("*/"))) for name in ("cache", "cache2")}
    return seen


def described(batches: list, prefix: str) -> Observed:
    """Keys, images and parameters of an epoch, and the sizes of its batches."""
    images = {name: [image.numpy().tobytes() for batch in batches for image in batch[name]] for name in ("hq", "lq")}
    told = {"keys": [key for batch in batches for key in batch["keys"]]}
    told["params"] = [params for batch in batches for params in batch.get("degradation", ())]
    told["patch-tags"] = [tags for batch in batches for tags in batch.get("patch_tags", ())]
    told["maps"] = sorted({name for batch in batches for name in batch.get("maps", ())})
    told["batches"] = [len(batch["keys"]) for batch in batches]
    return {f"{prefix}{name}": value for name, value in {**images, **told}.items()}


def damage_that_stops(data: SRDataModule) -> int | None:
    """How many damaged images stop the run."""
    if data.error_budget is None:
        return None
    for count in itertools.count(1):
        try:
            data.error_budget.add([(f"image {count}", "unreadable", True)])
        except MegaSRError:
            return count
    return None


@pytest.fixture(scope="module")
def references() -> dict[str, Observed]:
    return {}


@pytest.mark.parametrize(("module", "name"), CASES, ids=[f"{module.__name__}.{name}" for module, name in CASES])
def test_a_parameter_changes_what_the_table_says(
    root: Path, references: dict[str, Observed], module: type[SRDataModule], name: str
) -> None:
    value, shows = OWN.get((module, name)) or COMMON[name]
    given = GIVEN.get(name, {})
    where = f"{module.__name__} {given}"
    if where not in references:
        references[where] = observe(module, root, **given)
    before, after = references[where], observe(module, root, **{**given, name: value})
    changed = {"error"} if "error" in after else {what for what in before if before[what] != after[what]}
    expected = set(shows.split()) - ({"params", "eval-params"} if module is PairedDataModule else set())
    if name == "backend":
        changed -= {"lq"}  # the two differ by a level here and there
    assert changed == expected, after.get("error")


@pytest.mark.parametrize("module", MODULES)
def test_what_all_share_is_passed_on(root: Path, module: type[SRDataModule]) -> None:
    values = {
        name: value for name, (value, _) in COMMON.items() if name in parameters(module) - {"cache_dir", "cache_gb"}
    }
    values |= {"eval_degradation": "bicubic"} if "eval_degradation" in values else {"scale_factor": 4}
    settings = {name: placed(value, root) for name, value in {**BASE, **PLACES[module], **values}.items()}
    data = module(**settings)
    places = {
        "degradation": lambda: data.degradation.name,
        "eval_degradation": lambda: data.eval_degradation.name,
        "min_sharpness": lambda: data.train_source.image_filter.min_sharpness,
        "max_damaged": lambda: data.error_budget.max_damaged,
    }
    assert {name: places.get(name, lambda name=name: getattr(data, name))() for name in values} == values


def test_the_comparison_itself_can_be_equal(root: Path) -> None:
    assert observe(FolderDataModule, root) == observe(FolderDataModule, root)


BLUR = Blur((0.2, 3.0), (0.5, 4.0), (1.0, 2.0), probability=0.8)
FIRST = Order(BLUR, Noise((1, 30), (0.05, 3.0)), Jpeg((30, 95)), Resize(0.2, 0.7, (0.5, 1.5)))
DEGRADATION = HighOrder("strong", 4, (FIRST, replace(FIRST, jpeg=Jpeg((40, 90)))))
# (part of the first order, or the whole) -> field -> its other value
FIELDS: dict[str, dict[str, Any]] = {
    "": {"name": "mild", "scale_factor": 2, "orders": (FIRST,), "sinc_probability": 0.5, "untouched_probability": 0.5},
    "blur": {
        "sigma": (0.2, 1.0),
        "beta_generalized": (0.2, 4.0),
        "beta_plateau": (1.0, 3.0),
        "probability": 0.5,
        "sinc_probability": 0.5,
        "kernels": {"iso": 1.0},
    },
    "resize": {"up": 0.6, "down": 0.1, "scales": (0.5, 1.1)},
    "noise": {"sigma": (1, 2), "poisson_scale": (0.1, 1), "gaussian_probability": 0.1, "grey_probability": 0.9},
    "jpeg": {"quality": (30, 40)},
    "order": {
        "blur": Blur((3, 3), (1, 1), (1, 1)),
        "noise": Noise((1, 2), (0, 1)),
        "jpeg": Jpeg((9, 9)),
        "resize": None,
    },
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, flips in FIELDS.items() for name in flips])
def test_a_field_of_a_degradation_changes_what_is_drawn(part: str, name: str) -> None:
    old: Any = {"": DEGRADATION, "order": FIRST}.get(part) or getattr(FIRST, part)
    assert {field.name for field in fields(old)} == set(FIELDS[part])
    new: Any = replace(old, **{name: FIELDS[part][name]})
    if part:
        first = new if part == "order" else replace(FIRST, **{part: new})
        new = replace(DEGRADATION, orders=(first, *DEGRADATION.orders[1:]))
    keys = [f"image {n}" for n in range(60)]
    drawn, again, other = (one.sample_params(0, keys) for one in (DEGRADATION, DEGRADATION, new))
    assert drawn == again
    assert drawn != other
