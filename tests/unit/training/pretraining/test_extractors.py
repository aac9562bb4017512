"""The map network learns from scenes, and the edges of photographs from a real HED network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.embedded import WorldDataModule
from data_pipelines.samples import collate
from data_pipelines.scenes.rendering import SEGMENT_CLASSES, SEGMENT_COLORS
from megasr.errors import UsageError
from megasr.pretraining.extractors import ExtractorModule
from tests.helpers.extractor_checkpoints import write_hed

SIZES = {"widths": (8, 8, 8, 8), "blocks": (1, 1, 1, 1), "pyramid_width": 8}


def module(**changes: Any) -> ExtractorModule:
    made = ExtractorModule(SEGMENT_CLASSES, (SEGMENT_COLORS * 255).tolist(), **{**SIZES, **changes})
    made.log_dict = made.log = lambda *unused, **settings: None  # type: ignore[method-assign]
    return made


def batch(share: float, maps: bool = True) -> Any:
    settings = {"scale_factor": 1, "degradation": "none", "crop_size_px": 64, "eval_crop_size_px": 64}
    data = WorldDataModule(pool=3, photo_share=share, maps=maps, **settings)
    return collate([data.train_sample(draw) for draw in range(4)])


def test_photographs_teach_edges_alone_and_only_with_a_teacher(tmp_path: Path) -> None:
    photographs = batch(1.0)
    untaught = module()
    assert untaught._losses(photographs) == {}
    assert untaught.training_step(photographs, 0) is None
    taught = module(edge_teacher=str(write_hed(tmp_path / "hed")))
    losses = taught._losses(photographs)
    assert losses.keys() == {"hed"}
    losses["hed"].backward()
    assert taught.network.heads["hed"][2].weight.grad.abs().sum() > 0
    assert not [name for name in taught.state_dict() if "teacher" in name]  # checkpoints hold what is trained


def test_scenes_keep_their_exact_outlines(tmp_path: Path) -> None:
    scenes = batch(0.0)
    plain, taught = module()._losses(scenes), module(edge_teacher=str(write_hed(tmp_path / "hed")))._losses(scenes)
    assert plain.keys() == {"hed", "depth", "normal", "segmentation"}
    assert all(torch.equal(plain[name], taught[name]) for name in plain)


def test_a_mixed_batch_has_the_losses_of_its_parts(tmp_path: Path) -> None:
    mixed, taught = batch(0.5), module(edge_teacher=str(write_hed(tmp_path / "hed")))
    scenes = ["scene" in key for key in mixed["keys"]]
    assert 0 < sum(scenes) < 4
    losses = taught._losses(mixed)
    parts = []
    for chosen in (scenes, [not scene for scene in scenes]):
        maps = {name: value[chosen] for name, value in mixed["maps"].items()}
        parts.append(taught._losses({"hq": mixed["hq"][chosen], "maps": maps, "keys": []}))
    torch.testing.assert_close(losses["depth"], parts[0]["depth"])
    shares = torch.tensor([sum(scenes), 4 - sum(scenes)]) / 4
    torch.testing.assert_close(losses["hed"], (shares * torch.stack([part["hed"] for part in parts])).sum())


def test_pictures_without_maps_are_refused() -> None:
    with pytest.raises(UsageError, match="the batch lacks oracle_depth, oracle_edge"):
        module()._losses(batch(0.5, maps=False))
