"""Results on disk: what is written is what is read, and nothing else is taken for a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Evaluation, read_evaluation, write_evaluation
from megasr.evaluation.protocol import WEIGHT_FREE_V1

EVALUATION = Evaluation(
    protocol=WEIGHT_FREE_V1.name,
    fingerprint=WEIGHT_FREE_V1.fingerprint,
    rows=({"key": "a", "psnr_y": 20.1}, {"key": "b", "psnr_y": 1 / 3}),
    means={"psnr_y": 10.2},
    intervals={"psnr_y": (9.0, 11.0)},
    set_values={"fid": 100.5},
    skipped={"lpips": "no file"},
    data="drealsr",
    provenance={"commit": None, "versions": {"torch": "2"}},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_evaluation(EVALUATION, tmp_path / "new" / "r.json")
    assert read_evaluation(tmp_path / "new" / "r.json") == EVALUATION
    assert EVALUATION.keys == ("a", "b")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        pytest.param("[" * 100_000, id="deep"),
        '{"protocol": "x"}',
        '{"rows": [], "intervals": {}, "more": 1}',
        '{"rows": [], "intervals": []}',
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(MegaSRError, match="r.json is not an evaluation"):
        read_evaluation(tmp_path / "r.json")


def test_a_protocol_that_has_changed_is_noticed() -> None:
    assert EVALUATION.get_protocol() is WEIGHT_FREE_V1
    with pytest.raises(MegaSRError, match="weight-free-v1 deadbeef, which is .* here"):
        replace(EVALUATION, fingerprint="deadbeef").get_protocol()
