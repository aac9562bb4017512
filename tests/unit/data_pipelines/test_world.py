"""Pools of scenes and the mixture with photographs: crops, their tags and maps, shares, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.embedded import SceneDataModule, WorldDataModule
from data_pipelines.photos import TRAIN_PHOTOS
from data_pipelines.scenes.rendering import SEGMENT_CLASSES, SEGMENT_COLORS, crop_scene, render_scene, segmentation_rgb
from data_pipelines.scenes.source import render_pool
from megasr.errors import UsageError
from megasr.images import write_png

SMALL = {"crop_size_px": 32, "eval_crop_size_px": 64, "pool": 4}


def test_a_crop_of_a_scene_shows_what_its_tags_say() -> None:
    scene = render_scene(0, size_px=64)
    parts = [crop_scene(scene, top, left, 32) for top in (0, 32) for left in (0, 32)]
    assert {tag for part in parts for tag in part.tags} >= set(scene.tags)
    assert any(set(part.tags) < set(scene.tags) for part in parts)
    for part in parts:
        seen = {part.names[number] for number in np.unique(part.instance)}
        assert set(part.tags) <= seen
        assert part.hq.shape == (32, 32, 3)
        assert part.depth.max() == pytest.approx(1)
    whole = crop_scene(scene, 0, 0, 64)
    assert whole.tags == scene.tags
    assert np.array_equal(whole.edges, scene.edges)


def test_a_pool_is_cropped_with_its_maps() -> None:
    data = SceneDataModule(**SMALL)
    scenes = [render_scene(index, 0, 64) for index in range(4)]
    mirrored = []
    for draw in range(12):
        sample = data.train_sample(draw)
        scene = scenes[int(sample.key.split("/")[1])]
        place = [
            (top, left, flip)
            for flip in (False, True)
            for top in range(33)
            for left in range(33)
            if np.array_equal(sample.hq[:, ::-1] if flip else sample.hq, scene.hq[top : top + 32, left : left + 32])
        ]
        top, left, flip = place[0]
        mirrored.append(flip)
        part = crop_scene(scene, top, left, 32)
        assert sample.tags == ", ".join(part.tags)
        colours = torch.from_numpy(segmentation_rgb(part.segmentation)).permute(2, 0, 1)
        assert torch.equal(sample.maps["oracle_segmentation"], colours.flip(-1) if flip else colours)
    assert len(set(mirrored)) == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_loaders_processes_are_given_the_pool(num_workers: int) -> None:
    render_pool.cache_clear()
    loader = SceneDataModule(**SMALL, batch_size=2, train_samples=4, num_workers=num_workers).train_dataloader()
    assert render_pool.cache_info().currsize == num_workers, "rendered before a process is started"
    assert len([batch["keys"] for batch in loader]) == 2
    assert render_pool.cache_info().misses == 1


def test_a_pool_is_a_function_of_the_seed_and_the_draw() -> None:
    first, second, other = (SceneDataModule(**SMALL, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.train_sample(5).hq, second.train_sample(5).hq)
    assert not np.array_equal(first.train_sample(5).hq, other.train_sample(5).hq)
    assert first.order_fingerprint() != SceneDataModule(**{**SMALL, "pool": 5}).order_fingerprint()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_photographs(share: float) -> None:
    data = WorldDataModule(**SMALL, photo_share=share)
    names = {photo.name: ", ".join(photo.tags) for photo in TRAIN_PHOTOS}
    samples = [data.train_sample(draw) for draw in range(120)]
    photos = [sample for sample in samples if sample.key.split("/")[0] in names]
    assert all(sample.tags == names[sample.key.split("/")[0]] for sample in photos)
    assert len(photos) / len(samples) == pytest.approx(share, abs=0.12)
    assert len({sample.key for sample in samples}) == len(samples)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with one photograph of 96x64 px, red above and blue below, and one without tags."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :, 0], picture[32:, :, 2] = 255, 255
    write_png(picture, tmp_path / "flag.png")
    write_png(picture, tmp_path / "plain.png")
    (tmp_path / "flag.txt").write_text("flag, sky\n")
    return tmp_path


def test_photographs_of_a_folder_take_the_place_of_the_shipped_ones(photos: Path) -> None:
    data = WorldDataModule(**SMALL, photo_share=1.0, photos=str(photos))
    samples = [data.train_sample(draw) for draw in range(40)]
    assert {(sample.key.split("/")[0], sample.tags) for sample in samples} == {("flag", "flag, sky"), ("plain", "")}
    assert "2 of " in data.order_fingerprint()
    # Crops at full resolution have one border at most, and none has mixed colours.
    assert all(len(np.unique(sample.hq.reshape(-1, 3), axis=0)) <= 2 for sample in samples)


def test_photographs_are_also_seen_smaller(photos: Path) -> None:
    data = WorldDataModule(**SMALL, photo_share=1.0, photos=str(photos), photo_zoom=1.0)
    heights = [np.flatnonzero(data.train_sample(draw).hq[:, 0, 0] > 127).size for draw in range(60)]
    whole = WorldDataModule(**SMALL, photo_share=1.0, photos=str(photos))
    assert sum(14 <= height <= 18 for height in heights) > sum(  # half of a crop that shows the whole height is red
        14 <= np.flatnonzero(whole.train_sample(draw).hq[:, 0, 0] > 127).size <= 18 for draw in range(60)
    )


def test_maps_of_photographs_are_unknown() -> None:
    data = WorldDataModule(**SMALL, photo_share=0.5, maps=True)
    samples = [data.train_sample(draw) for draw in range(20)]
    kinds = {sample.key.startswith("scene"): sample.maps for sample in samples}
    assert {name: value.shape for name, value in kinds[True].items()} == {n: v.shape for n, v in kinds[False].items()}
    assert all(value.isfinite().all() for value in kinds[True].values())
    assert all(value.isnan().all() for value in kinds[False].values())
    assert not WorldDataModule(**SMALL).train_sample(0).maps


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (SceneDataModule, {"pool": -1}, "data.pool must not be negative, got -1"),
        (SceneDataModule, {"pool": 2, "crop_size_px": 128, "eval_crop_size_px": 64}, "larger than the scenes"),
        (WorldDataModule, {**SMALL, "patches": 5}, "data.patches 5 must divide data.crop_size_px 32"),
        (WorldDataModule, {**SMALL, "patches": 4, "pool": 0}, "and needs data.pool"),
        (WorldDataModule, {"photo_zoom": -0.1}, r"data.photo_zoom must be in \[0, 1\], got -0.1"),
        (WorldDataModule, {"photo_share": 1.5}, r"data.photo_share must be in \[0, 1\], got 1.5"),
    ],
)
def test_refused(module: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        module(**settings)


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no PNG: make photos fetches them"):
        WorldDataModule(**SMALL, photo_share=1.0, photos=str(tmp_path)).train_sample(0)


def test_what_the_patches_show() -> None:
    data = WorldDataModule(**SMALL, photo_share=0.0, patches=4)
    whole = {draw: SceneDataModule(**SMALL).train_sample(draw) for draw in range(6)}
    for draw, plain in whole.items():
        sample = data.train_sample(draw)
        assert np.array_equal(sample.hq, plain.hq)
        assert len(sample.patch_tags) == 16
        # the class colour that fills a patch is the material named by its tag
        colours = plain.maps["oracle_segmentation"].unflatten(1, (4, 8)).unflatten(3, (4, 8))
        for number, tag in enumerate(sample.patch_tags):
            patch = colours[:, number // 4, :, number % 4, :].flatten(1)
            if (patch == patch[:, :1]).all() and "sky" not in tag:
                material = int(np.argmin(np.abs(SEGMENT_COLORS - patch[:, 0].numpy()).sum(1)))
                assert SEGMENT_CLASSES[material] in tag
    assert WorldDataModule(**SMALL, photo_share=1.0, patches=2).train_sample(0).patch_tags == ("",) * 4
