from __future__ import annotations

from pathlib import Path

import pytest

from megasr import weights
from megasr.errors import MegaSRError


def cache_with(mirror: str, folder: Path) -> Path:
    """A Hugging Face cache that holds one snapshot of `mirror`."""
    repository = folder / f"models--{mirror.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    return snapshot


@pytest.mark.parametrize("mirror", weights.SD21_BASE)
def test_any_mirror_in_the_cache_is_found(mirror: str, tmp_path: Path) -> None:
    snapshot = cache_with(mirror, tmp_path)
    assert weights.find_local("sd21-base", tmp_path) == snapshot
    assert weights.find_local(mirror, tmp_path) == snapshot


@pytest.mark.parametrize("name", ["sd21-base", "somebody/something", "no hub id at all", "/absolute/folder"])
def test_absent_weights_are_none(name: str, tmp_path: Path) -> None:
    assert weights.find_local(name, tmp_path) is None


@pytest.mark.parametrize("name", weights.MANIFEST)
def test_missing_weight_names_mirrors_command_and_licence(name: str) -> None:
    weight, message = weights.MANIFEST[name], str(weights.missing_weight(name))
    for part in (*weight.mirrors, weight.elsewhere, weight.licence, f"hf download {weight.mirrors[0]}"):
        assert part in message
    assert "\n" not in message


def test_a_hub_id_outside_the_manifest_has_its_own_command() -> None:
    assert "`hf download somebody/something`" in str(weights.missing_weight("somebody/something"))


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert "did you mean sd21-base?" in str(weights.missing_weight("sd21base"))
    assert "known: tiny, sd21-base" in str(weights.missing_weight("zzz"))


def test_require_raises_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "find_local", lambda name: None)
    with pytest.raises(MegaSRError, match="sd21-base is not on this machine"):
        weights.require("sd21-base")
    monkeypatch.setattr(weights, "find_local", lambda name: tmp_path)
    assert weights.require("sd21-base") == tmp_path
