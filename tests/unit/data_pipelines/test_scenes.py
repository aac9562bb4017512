"""Procedural scenes: repeatable, exact maps that agree with each other, honest tags, every material in use."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pytest

from data_pipelines.scenes import source
from data_pipelines.scenes.rendering import SEGMENT_CLASSES, SEGMENT_COLORS, Scene, render_scene, segmentation_rgb

SIZE_PX = 64
COUNT = 100


@lru_cache(maxsize=1)
def scenes() -> tuple[Scene, ...]:
    return tuple(render_scene(index, size_px=SIZE_PX) for index in range(COUNT))


def changes_to_next(values: np.ndarray) -> np.ndarray:
    """True where the right or the lower neighbour differs, (H, W)."""
    changed = np.zeros(values.shape[:2], bool)
    changed[:, :-1] |= values[:, :-1] != values[:, 1:]
    changed[:-1] |= values[:-1] != values[1:]
    return changed


def test_a_scene_depends_on_seed_and_index_only() -> None:
    first = render_scene(3, seed=5, size_px=SIZE_PX)
    np.random.seed(0)  # noqa: NPY002 - the global generator must not matter
    render_scene(9, seed=1, size_px=32)
    again = render_scene(3, seed=5, size_px=SIZE_PX)
    for name in ("hq", "depth", "normal", "segmentation", "instance", "edges"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)
    assert first.tags == again.tags
    assert not np.array_equal(first.hq, render_scene(4, seed=5, size_px=SIZE_PX).hq)
    assert not np.array_equal(first.hq, render_scene(3, seed=6, size_px=SIZE_PX).hq)


def test_maps_have_the_promised_types_and_ranges() -> None:
    square = (SIZE_PX, SIZE_PX)
    for scene in scenes():
        assert scene.hq.shape == (*square, 3) and scene.hq.dtype == np.uint8
        assert scene.normal.shape == (*square, 3)
        for values in (scene.depth, scene.normal, scene.edges):
            assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1
        for ids in (scene.segmentation, scene.instance):
            assert ids.shape == square and ids.dtype == np.int32 and ids.min() >= 0
        assert 25 < scene.hq.mean() < 240 and scene.hq.std() > 3


def test_maps_agree_with_each_other() -> None:
    for scene in scenes():
        sky = scene.instance == 0
        np.testing.assert_array_equal(scene.segmentation == 0, sky)
        np.testing.assert_array_equal(scene.depth == 0, sky)
        length = np.linalg.norm(scene.normal * 2 - 1, axis=-1)
        np.testing.assert_allclose(length, np.where(sky, 0, 1), atol=1e-3)
        edges = scene.edges > 0
        border = changes_to_next(scene.instance)
        assert not (border & ~edges).any(), "every object border is an edge"
        turned = np.zeros_like(border)
        for axis in (0, 1):
            step = np.abs(np.diff(scene.normal, axis=axis)).max(-1) > 0.02
            turned[: step.shape[0], : step.shape[1]] |= step
        assert not (edges & ~border & ~turned).any(), "every other edge is a crease"


def test_inverse_depth_of_a_plane_is_linear_on_screen() -> None:
    for scene in scenes():
        for instance in np.unique(scene.instance[scene.instance > 0]):
            mask = scene.instance == instance
            n = scene.normal[mask] * 2 - 1
            if mask.sum() > 50 and np.ptp(n, axis=0).max() < 1e-3:
                rows, columns = np.nonzero(mask)
                design = np.stack([rows, columns, np.ones_like(rows)], 1).astype(np.float64)
                fitted = design @ np.linalg.lstsq(design, scene.depth[mask], rcond=None)[0]
                assert np.abs(fitted - scene.depth[mask]).max() < 1e-3


def test_tags_name_only_visible_classes() -> None:
    for scene in scenes():
        area = np.bincount(scene.segmentation.ravel(), minlength=len(SEGMENT_CLASSES)) / SIZE_PX**2
        visible = [name for name, share in zip(SEGMENT_CLASSES, area, strict=True) if share >= 0.01]
        assert scene.tags and len(set(scene.tags)) == len(scene.tags)
        for tag in scene.tags:
            assert any(name in tag for name in visible), (tag, visible)


def test_every_material_appears() -> None:
    seen = np.unique(np.concatenate([np.unique(scene.segmentation) for scene in scenes()]))
    assert {SEGMENT_CLASSES[i] for i in seen} == set(SEGMENT_CLASSES)


def test_two_sizes_show_the_same_content() -> None:
    for index in range(6):
        small, large = render_scene(index, size_px=64), render_scene(index, size_px=128)
        shrunk = cv2.resize(large.hq, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.hq.ravel(), shrunk.ravel())[0, 1] > 0.95
        assert (small.segmentation == large.segmentation[::2, ::2]).mean() > 0.93


def test_segmentation_colours_are_distinct() -> None:
    assert SEGMENT_COLORS.shape == (len(SEGMENT_CLASSES), 3)
    gaps = np.abs(SEGMENT_COLORS[:, None] - SEGMENT_COLORS[None]).max(-1) + np.eye(len(SEGMENT_CLASSES))
    assert gaps.min() > 0.04
    rgb = segmentation_rgb(np.int32([[0, 1], [2, 0]]))
    assert rgb.shape == (2, 2, 3) and rgb.dtype == np.float32
    np.testing.assert_array_equal(rgb[0, 0], rgb[1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"), [({"index": -1}, "index is -1"), ({"index": 0, "size_px": 15}, "15.*16")]
)
def test_bad_input_names_the_value_and_the_limit(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_scene(**arguments)


def test_processes_render_the_pool_that_one_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = source.render_pool.__wrapped__(9, 0, 32)
    monkeypatch.setattr(source, "_prepared", {})
    source.prepare_pool(9, 0, 32, processes=2)
    together = source.render_pool.__wrapped__(9, 0, 32)
    assert together is source._prepared[9, 0, 32], "else the test compares nothing"
    assert [scene.tags for scene in together] == [scene.tags for scene in alone]
    for field in ("hq", "depth", "normal", "segmentation", "edges"):
        assert all(np.array_equal(getattr(a, field), getattr(b, field)) for a, b in zip(together, alone, strict=True))
