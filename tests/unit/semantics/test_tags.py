"""Which tagger a config builds, and the tags that come with the data."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.semantics.taggers import GivenTagger
from megasr.semantics.tags import _USED_BY, TaggerConfig, build_tagger

IMAGES = torch.zeros(3, 3, 8, 8)
TAGS = ["cloudy blue sky, grass ground", "", "Odd , spacing"]
RAM_FILES = {"weights": "ram.pth", "labels": "list.txt"}


def test_given_tags_are_passed_on_as_they_are() -> None:
    tagger = build_tagger(TaggerConfig())
    assert tagger(IMAGES, TAGS) == TAGS
    assert tagger(IMAGES) == ["", "", ""]
    assert tagger(IMAGES, tuple(TAGS)) == TAGS


def test_scene_tags_are_exact_or_an_error() -> None:
    tagger = build_tagger(TaggerConfig(kind="scene"))
    assert tagger(IMAGES[:2], ["sky", TAGS[0]]) == ["sky", TAGS[0]]
    with pytest.raises(UsageError, match="exact tags of rendered scenes, but image 1 of 3 comes without"):
        tagger(IMAGES, TAGS)
    with pytest.raises(UsageError, match="image 0 of 3 comes without"):
        tagger(IMAGES)
    with pytest.raises(UsageError, match="image 1 of 3 comes without"):
        tagger(IMAGES, ["sky", "  ", "sky"])


@pytest.mark.parametrize("given", [TAGS[:2], [*TAGS, ""], "sky"])
def test_tag_lists_must_match_the_images(given: Any) -> None:
    with pytest.raises(UsageError, match=f"{len(given)} given tag lists for 3 images"):
        GivenTagger()(IMAGES, given)


def test_images_must_be_images() -> None:
    with pytest.raises(UsageError, match="tagger image: expected float RGB"):
        GivenTagger()(IMAGES[:, :1], TAGS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "clap"}, "unknown tagger.kind 'clap'; did you mean clip"),
        ({"kind": "clip", "model": "tiny", "threshold": 1.5}, "tagger.threshold is 1.5"),
        ({"kind": "clip", "model": "tiny", "threshold": float("nan")}, "tagger.threshold is nan"),
        ({"kind": "clip", "model": "tiny", "max_tags": 0}, "tagger.max_tags is 0"),
        ({"kind": "clip", "model": "tiny", "template": "a photo"}, "tagger.template 'a photo' must hold {} once"),
        ({"kind": "clip", "model": "tiny", "weights": "x"}, "'tiny' brings its own weights"),
        ({"kind": "clip", "model": "ViT-B-32"}, "tagger.weights: name the checkpoint of ViT-B-32"),
        ({"kind": "ram", "weights": "x"}, "needs tagger.weights .* and tagger.labels"),
        ({"kind": "ram", **RAM_FILES, "label_thresholds": "t", "threshold": 0.5}, "leave out tagger.threshold"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        TaggerConfig(**values)
    assert "\n" not in str(error.value)


OTHER = {
    "model": "tiny",
    "weights": "x",
    "lora": "x",
    "vocabulary": "general",
    "template": "a {}",
    "labels": "x",
    "label_thresholds": "x",
    "threshold": 0.5,
    "max_tags": 3,
    "keep_given": False,
}


@pytest.mark.parametrize("kind", ["given", "scene", "clip", "ram"])
@pytest.mark.parametrize("name", OTHER)
def test_a_field_is_accepted_where_it_has_an_effect_and_nowhere_else(kind: str, name: str) -> None:
    needed = {"clip": {}, "ram": RAM_FILES}.get(kind, {})
    values: dict[str, Any] = {**needed, "kind": kind, name: OTHER[name]}
    if kind == "clip" and name == "weights":
        values["model"] = "ViT-B-32"
    if kind in _USED_BY[name]:
        assert getattr(TaggerConfig(**values), name) == OTHER[name]
    else:
        with pytest.raises(UsageError, match=f"tagger.{name} .* has no effect with tagger.kind {kind}"):
            TaggerConfig(**values)


def test_every_field_is_used_by_some_kind() -> None:
    assert {field.name for field in fields(TaggerConfig)} == set(_USED_BY) == {"kind", *OTHER}


def test_what_is_not_there_is_one_clear_error(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="vocabulary 'tinny' is neither"):
        build_tagger(TaggerConfig(kind="clip", model="tiny", vocabulary="tinny"))
    with pytest.raises(UsageError, match="unknown open_clip model 'ViT-B-23'; did you mean"):
        build_tagger(TaggerConfig(kind="clip", model="ViT-B-23", weights="x"))
    with pytest.raises(MegaSRError, match="CLIP weights .*absent.pt' for RN50 cannot be loaded") as error:
        build_tagger(TaggerConfig(kind="clip", model="RN50", weights=str(tmp_path / "absent.pt")))
    assert "\n" not in str(error.value)
