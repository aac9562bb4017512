"""The guidance registry: names, order, duplicates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megasr.errors import UsageError
from megasr.guidance import registry
from megasr.guidance.edges import extract_canny
from megasr.guidance.registry import GuidanceType, get_guidance, list_guidance, register, resolve_guidance


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


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
    register(GuidanceType("outline", "edge", 1, "lq", "a second canny", formula=extract_canny))
    assert {"outline", "oracle_outline"} <= set(list_guidance())
    oracle = get_guidance("oracle_outline")
    assert (oracle.source, oracle.formula, oracle.role) == ("hq", extract_canny, "edge")


@pytest.mark.parametrize("name", ["canny", "oracle_depth", "oracle_canny"])
def test_a_registered_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is registered twice"):
        register(get_guidance(name))


def test_source_and_extractor_must_agree() -> None:
    with pytest.raises(ValueError, match="canny: source 'batch'"):
        replace(get_guidance("canny"), source="batch")
    with pytest.raises(ValueError, match="canny: source 'lq' needs either formula or load"):
        replace(get_guidance("canny"), formula=None)
    with pytest.raises(ValueError, match="canny: weights are named"):
        replace(get_guidance("canny"), weights=("tiny",))
