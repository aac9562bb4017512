"""The evaluator: values, invariance to batching, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator, check_keys
from megasr.evaluation.protocol import WEIGHT_FREE_V1
from megasr.evaluation.spec import Protocol
from megasr.rng import torch_generator

PSNR_ONLY = Protocol("psnr-only", 1, WEIGHT_FREE_V1.metrics[:1])


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator(WEIGHT_FREE_V1)


@pytest.fixture(scope="module")
def psnr() -> Evaluator:
    return Evaluator(PSNR_ONLY)


def _images(count: int = 3, size_px: int = 64) -> torch.Tensor:
    return (torch.rand(count, 3, size_px, size_px, generator=torch_generator(0, "images")) * 255).round() / 255


def test_psnr_of_a_grey_step_is_the_closed_form(psnr: Evaluator) -> None:
    hq, sr = torch.full((1, 3, 32, 32), 100 / 255), torch.full((1, 3, 32, 32), 110 / 255)
    # Ten grey levels are 10 * 219 / 255 levels of limited-range Y.
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    assert psnr.rows(sr, hq, ["grey"])[0]["psnr_y"] == pytest.approx(expected, abs=1e-3)


def test_color_space_reaches_the_metric(psnr: Evaluator) -> None:
    hq = _images(1)
    sr = (hq * 0.9 * 255).round() / 255
    full_range = Evaluator(replace(PSNR_ONLY, color_space="yiq"))
    gap = psnr.rows(sr, hq, ["a"])[0]["psnr_y"] - full_range.rows(sr, hq, ["a"])[0]["psnr_y"]
    assert gap == pytest.approx(20 * math.log10(255 / 219), abs=0.02)


def test_rows_do_not_depend_on_the_batch(evaluator: Evaluator) -> None:
    hq = _images()
    sr = (hq + 0.1 * torch.randn(hq.shape, generator=torch_generator(0, "noise"))).clamp(0, 1)
    together = evaluator.rows(sr, hq, ["a", "b", "c"])
    alone = [evaluator.rows(sr[i : i + 1], hq[i : i + 1], [key])[0] for i, key in enumerate("abc")]
    assert together == alone
    assert [set(row) for row in together] == [{"key", *WEIGHT_FREE_V1.metric_names}] * 3
    assert len({row["psnr_y"] for row in together}) == 3


def test_sr_is_measured_as_8_bit(psnr: Evaluator) -> None:
    hq = _images(1)
    assert psnr.rows(hq + 0.4 / 255, hq, ["a"])[0]["psnr_y"] == psnr.rows(hq, hq, ["a"])[0]["psnr_y"]
    assert psnr.rows(hq + 0.6 / 255, hq, ["a"])[0]["psnr_y"] < 60


def test_the_border_is_cut_off(psnr: Evaluator) -> None:
    hq = _images(1)
    sr = hq.clone()
    sr[..., :4, :] = 0
    sr[..., -4:] = 0
    perfect = psnr.rows(hq, hq, ["a"])[0]["psnr_y"]
    assert psnr.rows(sr, hq, ["a"])[0]["psnr_y"] < perfect
    assert Evaluator(replace(PSNR_ONLY, border_px=4)).rows(sr, hq, ["a"])[0]["psnr_y"] == perfect


def test_a_non_finite_image_stops_the_evaluation(psnr: Evaluator) -> None:
    hq = _images(2)
    sr = hq.clone()
    sr[1, 0, 0, :2] = math.nan
    with pytest.raises(MegaSRError, match="'second' has 2 non-finite"):
        psnr.rows(sr, hq, ["first", "second"])


def test_a_non_finite_metric_names_key_and_metric() -> None:
    evaluator = Evaluator(PSNR_ONLY)
    evaluator._metrics[0]._metric = lambda sr, hq: torch.tensor(math.inf)
    with pytest.raises(MegaSRError, match="psnr_y of 'lake' is inf"):
        evaluator.rows(_images(1), _images(1), ["lake"])


@pytest.mark.parametrize(
    ("sr", "hq", "keys", "message"),
    [
        (_images(2), _images(2), ["a"], "1 keys for 2 images: a"),
        (_images(2), _images(2), ["a", "a"], "repeated: a"),
        (_images(2), _images(2)[..., :32], ["a", "b"], "equal sizes"),
        (_images(1), _images(1) * 2 - 1, ["a"], r"hq of 'a': values in \[-"),
        (_images(1)[0], _images(1), ["a"], "sr: expected float RGB"),
    ],
)
def test_what_does_not_fit_is_refused(
    psnr: Evaluator, sr: torch.Tensor, hq: torch.Tensor, keys: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        psnr.rows(sr, hq, keys)


def test_summary_is_the_mean_over_exactly_the_set(psnr: Evaluator) -> None:
    rows = [{"key": "a", "psnr_y": 20.0}, {"key": "b", "psnr_y": 30.0}]
    assert psnr.summary(rows, ["b", "a"]) == {"psnr_y": 25.0}
    with pytest.raises(UsageError, match="missing: c"):
        psnr.summary(rows, ["a", "b", "c"])
    with pytest.raises(UsageError, match="unexpected: b"):
        psnr.summary(rows, ["a"])
    with pytest.raises(UsageError, match="repeated: a"):
        psnr.summary([*rows, rows[0]])
    with pytest.raises(UsageError, match="empty"):
        psnr.summary([])


def test_all_key_problems_are_listed_at_once() -> None:
    with pytest.raises(UsageError, match="missing: c; unexpected: d, e; repeated: a"):
        check_keys(["a", "a", "d", "e"], ["a", "c"])


def test_it_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    Evaluator(WEIGHT_FREE_V1).rows(_images(1), _images(1), ["a"])
    assert capfd.readouterr() == ("", "")
