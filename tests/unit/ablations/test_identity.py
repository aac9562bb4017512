"""Frozen weights are part of what a run is: replaced under their name they make another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablations import plan as planning
from ablations.identity import identify_weights
from megasr.errors import MegaSRError
from megasr.training.folders import SHIPPED

MODEL: dict[str, Any] = {
    "prior": "tiny",
    "adapter": {"guidance": ["hed", "depth", "oracle_hed", "canny"]},
    "extractors": {"sources": {"hed": "tiny", "depth": "tiny_lq"}},
    "vision": {"model": "tiny", "weights": ""},
    "tagger": {"kind": "clip", "model": "tiny_lq", "weights": ""},
    "init": "tiny",
}


def test_every_network_that_a_config_names_is_identified() -> None:
    found = identify_weights(MODEL)
    assert set(found) == {"prior", "vision", "init", "tagger", "extractor hed", "extractor depth"}
    assert all(value for value in found.values())
    assert found["extractor hed"] != found["extractor depth"]
    assert found["vision"] != found["tagger"]
    assert set(identify_weights({"prior": "tiny"})) == {"prior"}


@pytest.mark.parametrize("part", ["prior", "vision", "tagger", "init", "extractor hed"])
def test_another_file_is_another_run_and_another_training(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model": MODEL, "data": {"init_args": {}}, "trainer": {}}
    before = planning.plan_run("study", "arm", 0, config)
    changed = identify_weights(MODEL) | {part: "0" * 12}
    monkeypatch.setattr(planning, "identify_weights", lambda model: changed)
    after = planning.plan_run("study", "arm", 0, config)
    assert before.run_id != after.run_id
    assert before.training != after.training


def test_a_replaced_checkpoint_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "start.ckpt"
    path.write_bytes(SHIPPED["tiny"].read_bytes())
    same = identify_weights(MODEL | {"init": str(path)})
    assert same["init"] == identify_weights(MODEL)["init"]
    path.write_bytes(b"another")
    assert identify_weights(MODEL | {"init": str(path)})["init"] != same["init"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"init": "nowhere.ckpt"}, "no checkpoint nowhere.ckpt"),
        ({"tagger": {"kind": "ram", "weights": "ram.pth"}}, "cannot read ram.pth"),
        ({"extractors": {"sources": {"hed": "nowhere"}}}, "nowhere"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(change: dict[str, Any], says: str) -> None:
    with pytest.raises(MegaSRError, match=says):
        identify_weights(MODEL | change)
