"""The guidance registry: names, order, duplicates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megasr import plugins
from megasr.commands import early
from megasr.errors import UsageError
from megasr.guidance.edges import extract_canny
from megasr.guidance.extract import extract_guidance
from megasr.guidance.registry import (
    GUIDANCE,
    GuidanceType,
    get_guidance,
    list_guidance,
    register_guidance,
    resolve_guidance,
)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GUIDANCE, "_entries", dict(GUIDANCE._entries))


def test_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown guidance type 'cany'; did you mean canny"):
        get_guidance("cany")


def test_order_of_typing_does_not_matter() -> None:
    names = ["superpixel", "canny", "noise"]
    assert resolve_guidance(names) == resolve_guidance(reversed(names))
    assert [guidance.name for guidance in resolve_guidance(names)] == ["canny", "noise", "superpixel"]
    assert resolve_guidance([]) == []


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"given twice: canny$"):
        resolve_guidance(["canny", "noise", "canny"])


def test_a_new_type_brings_its_positive_control() -> None:
    register_guidance(GuidanceType("outline", "edge", 1, "lq", "a second canny", formula=extract_canny))
    assert {"outline", "oracle_outline"} <= set(list_guidance())
    oracle = get_guidance("oracle_outline")
    assert (oracle.source, oracle.formula, oracle.role) == ("hq", extract_canny, "edge")


@pytest.mark.parametrize("name", ["canny", "oracle_depth", "oracle_canny"])
def test_a_registered_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is registered twice"):
        register_guidance(get_guidance(name))


def test_source_and_extractor_must_agree() -> None:
    for change in ({"source": "batch"}, {"formula": None}, {"weights": ("tiny",)}):
        with pytest.raises(ValueError, match="guidance type canny: give a formula, or load and weights"):
            replace(get_guidance("canny"), **change)


OWN = """
from megasr.guidance.registry import GuidanceType, register_guidance

def extract_brightness(image, keys):
    return image.mean(1, keepdim=True)

register_guidance(GuidanceType("brightness", "region", 1, "lq", "grey", formula=extract_brightness))
"""


def test_a_type_of_a_users_module_is_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_guidance.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "own_guidance")
    monkeypatch.setattr(plugins, "_imported", set(plugins._imported))
    assert {"brightness", "oracle_brightness"} <= set(list_guidance())
    early.check_guidance("brightness")
    with pytest.raises(UsageError, match="unknown guidance type 'brightnes'; did you mean brightness"):
        early.check_guidance("brightnes")
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = extract_guidance({"keys": ["a"], "lq": image}, resolve_guidance(["brightness"]), 1)
    assert torch.equal(maps["brightness"], image.mean(1, keepdim=True))
