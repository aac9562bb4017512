"""The judge of the prior: what its descriptor tells apart, its rule, its intervals, and the scores of tags."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.data_module import EVAL_SEED
from data_pipelines.scenes.layouts import compose
from experiments.tiny.measure_prior import SCORES, picture_counts, psnr, tagging_scores, write_part
from experiments.tiny.text_control import (
    BareSurface,
    References,
    bare_surfaces,
    describe,
    describe_all,
    make_references,
    measure,
    paint_and_material,
    score,
    surface_class,
)


@pytest.fixture(scope="module")
def swatches() -> list[BareSurface]:
    """Two bricks and grass, two scenes of each: the first that the training seed has."""
    wanted = dict.fromkeys(("red brick", "gray brick", "grass"), 2)
    found = []
    for index in itertools.count():
        solids = compose(np.random.default_rng([0, index])).solids
        name = surface_class(solids[:2][-1].tag)  # a wall hides the ground; rendering all candidates would take seconds
        if len(solids) <= 2 and wanted.get(name):
            wanted[name] -= 1
            found += bare_surfaces(0, range(index, index + 1))
        if not any(wanted.values()):
            break
    assert [surface_class(s.tag) for s in found].count("red brick") == 2
    return found


def test_a_bare_surface_is_nearer_to_its_own_class(swatches: list[BareSurface]) -> None:
    names = [surface_class(s.tag) for s in swatches]
    descriptors = describe_all([s.hq for s in swatches])
    for left_out, name in enumerate(names):
        others = np.arange(len(names)) != left_out
        references = References(descriptors[others], np.array(names)[others])
        assert references.nearest(descriptors[left_out : left_out + 1]) == [name]


def test_paint_is_told_where_only_it_differs(swatches: list[BareSurface]) -> None:
    brick = next(s.hq for s in swatches if surface_class(s.tag) == "red brick")
    blue = np.ascontiguousarray(brick[..., ::-1])
    assert np.linalg.norm(describe(brick) - describe(blue)) > 0.5


def test_texture_is_told_where_colours_are_equal() -> None:
    rows = np.tile(np.arange(64)[:, None, None] // 4 % 2 * 255, (1, 64, 3)).astype(np.uint8)
    assert np.linalg.norm(describe(rows) - describe(np.ascontiguousarray(rows.transpose(1, 0, 2)))) > 0.5
    fine = np.ascontiguousarray(np.tile(np.arange(64)[:, None, None] // 2 % 2 * 255, (1, 64, 3)).astype(np.uint8))
    assert np.linalg.norm(describe(rows) - describe(fine)) > 0.5


def test_the_mirror_image_has_nearly_the_same_descriptor(swatches: list[BareSurface]) -> None:
    descriptors = describe_all([s.hq for s in swatches])
    mirrored = describe_all([np.ascontiguousarray(s.hq[:, ::-1]) for s in swatches])
    distance = np.linalg.norm(descriptors[:, None] - mirrored, axis=-1)
    assert np.diag(distance).max() < 0.5 * distance[~np.eye(len(swatches), dtype=bool)].min()


def test_bare_surfaces_show_one_thing_of_a_known_kind() -> None:
    found = list(bare_surfaces(EVAL_SEED, range(20)))
    assert 1 <= len(found) < 20
    assert {s.tag.split()[-1] for s in found} <= {"wall", "ground", "floor"}


def test_a_class_is_as_near_as_its_two_nearest_references() -> None:
    descriptors = np.array([[0.0], [1.0], [9.0], [0.4], [8.0], [3.0]])
    references = References(descriptors, np.array(["grass", "grass", "grass", "sand", "sand", "snow"]))
    # 0.3: sand has the nearest reference (0.1), grass the nearest two (0.3 and 0.7); 2.9: snow has one reference only
    assert references.nearest(np.array([[0.3], [2.9], [8.4]])) == ["grass", "snow", "grass"]


@pytest.mark.parametrize(
    ("tag", "paint", "material"),
    [("red brick wall", "red", "brick"), ("grass ground", "", "grass"), ("cracked soil ground", "", "cracked soil")],
)
def test_a_tag_is_taken_apart(tag: str, paint: str, material: str) -> None:
    assert paint_and_material(surface_class(tag)) == (paint, material)


def test_scores_split_class_material_and_paint() -> None:
    shares = score(["red brick", "red cloth", "grass", "sand"], ["red brick", "blue cloth", "grass", "grass"])
    assert {name: (s["share"], s["pictures"]) for name, s in shares.items()} == {
        "class": (0.5, 4), "material": (0.75, 4), "paint": (0.5, 2),
    }  # fmt: skip


def test_a_prior_that_draws_what_is_asked_is_right_and_one_that_does_not_is_not() -> None:
    held_out = list(itertools.islice(bare_surfaces(EVAL_SEED, itertools.count()), 4))
    pictures = {s.tag: s.hq for s in held_out}
    references = References(describe_all([s.hq for s in held_out]), np.array([surface_class(s.tag) for s in held_out]))
    asked: list[tuple[str, str, float]] = []

    def generate(prompts: Sequence[str], keys: Sequence[str], scale: float) -> list[np.ndarray]:
        asked.extend(zip(prompts, keys, [scale] * len(keys), strict=True))
        blank = np.zeros_like(held_out[0].hq)
        return [pictures[p] if scale == 3 else blank for p in prompts]

    result = measure(references, generate, list, count=4)
    shares = {name: entry["class"]["share"] for name, entry in result["shares"].items()}
    assert shares["held-out renders"] == shares["samples, guidance scale 3"] == 1
    assert shares["samples, guidance scale 1"] < 1
    assert [prompt for prompt, _, _ in asked] == [*pictures, *pictures, *[""] * 4]
    assert len({key for _, key, _ in asked}) == 4


def test_references_are_bare_surfaces_of_the_training_seed() -> None:
    references, surfaces = make_references(8), list(bare_surfaces(0, range(8)))
    assert references.names.tolist() == [surface_class(s.tag) for s in surfaces]
    assert np.array_equal(references.descriptors, describe_all([s.hq for s in surfaces]))


def test_tags_are_scored() -> None:
    truth = np.array([[True, True, False, False], [False, False, True, False]])
    probability = np.array([[0.9, 0.2, 0.6, 0.1], [0.8, 0.3, 0.7, 0.1]])
    scores = dict(zip(SCORES, tagging_scores(picture_counts(truth, probability)), strict=True))
    assert scores == pytest.approx(
        {"top1": 0.5, "top3_precision": 3 / 6, "precision": 2 / 4, "recall": 2 / 3, "mean_average_precision": 2 / 3}
    )


def test_psnr_is_of_each_picture() -> None:
    black, gray = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr([gray, gray], [black, gray + 1]) == pytest.approx([13.979, 48.131], abs=1e-3)


def test_a_part_replaces_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "out" / "prior.json"
    for part, value in (("clip", 1), ("text", 2), ("clip", 3)):
        write_part(path, part, {"commit": "c"}, {"value": value})
    assert {part: entry["results"] for part, entry in json.loads(path.read_text()).items()} == {
        "clip": {"value": 3}, "text": {"value": 2},
    }  # fmt: skip
