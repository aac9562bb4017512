"""Agreement of metrics: rank correlations over images and over gains, and the warning where they disagree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from megasr import cli
from megasr.evaluation.agreement import conflict, rank_correlations
from megasr.evaluation.comparison import conflict_between
from megasr.evaluation.evaluator import Evaluation, write_evaluation
from megasr.evaluation.protocol import WEIGHT_FREE_V1
from megasr.rng import numpy_generator

COUNT = 30


def evaluation(**scores: np.ndarray) -> Evaluation:
    """Scores of images that are a photograph each."""
    count = len(next(iter(scores.values())))
    rows = tuple({"key": f"image{i}", **{name: float(v[i]) for name, v in scores.items()}} for i in range(count))
    means = {name: float(value.mean()) for name, value in scores.items()}
    return Evaluation(WEIGHT_FREE_V1.name, WEIGHT_FREE_V1.fingerprint, rows, means)


@pytest.fixture
def draws() -> np.ndarray:
    return numpy_generator(0, "agreement").normal(size=(4, COUNT))


def test_correlations_are_spearmans_and_know_the_direction(draws: np.ndarray) -> None:
    hard, other, gain, noise = draws
    first = evaluation(psnr_y=hard, gmsd=np.exp(-hard), nlpd=other, fsim=np.ones(COUNT))
    alone = rank_correlations(first)
    assert alone.table.loc["psnr_y", "gmsd"] == pytest.approx(1)  # a low gmsd is a good one
    assert alone.table.loc["psnr_y", "nlpd"] == pytest.approx(-spearmanr(hard, other).statistic)
    assert np.isnan(alone.table.loc["psnr_y", "fsim"]) and "–" in alone.markdown()
    assert alone.noise == pytest.approx(1.96 / (COUNT - 1) ** 0.5)
    # How hard the images are makes both metrics of both methods alike; what was gained does not.
    second = evaluation(psnr_y=hard + gain / 10, nlpd=-hard - noise / 10)
    alike = evaluation(psnr_y=hard, nlpd=-hard)
    assert rank_correlations(second).table.loc["psnr_y", "nlpd"] > 0.9
    over = rank_correlations(alike, [second])
    assert over.table.loc["psnr_y", "nlpd"] == pytest.approx(spearmanr(gain, noise).statistic)
    assert "gains of 1 method over the first on 30 images" in over.caption
    both = rank_correlations(alike, [second, second])
    assert "2 methods" in both.caption
    assert both.table.loc["psnr_y", "nlpd"] == pytest.approx(over.table.loc["psnr_y", "nlpd"], abs=0.02)


def test_too_little_gives_no_table(draws: np.ndarray) -> None:
    assert rank_correlations(evaluation(psnr_y=draws[0])) is None
    assert rank_correlations(evaluation(psnr_y=draws[0, :3], gmsd=draws[1, :3])) is None
    assert rank_correlations(evaluation(psnr_y=draws[0], gmsd=draws[1]), [evaluation(gmsd=draws[2])]) is None


def test_metrics_that_disagree_are_named(draws: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conflict({"psnr_y": "better", "gmsd": "better", "fsim": "no difference shown"}) == ""
    hard, noise = draws[0], draws[1] / 100
    first = evaluation(psnr_y=hard, gmsd=hard, fsim=hard)
    second = evaluation(psnr_y=hard + 1 + noise, gmsd=hard + 1 + noise, fsim=hard + noise)
    says = "metrics disagree: better in psnr_y, worse in gmsd. Look at the pictures"
    assert conflict_between(second, first).startswith(says)
    assert conflict_between(first, first) == ""
    assert conflict_between(evaluation(psnr_y=hard[:1]), evaluation(psnr_y=hard[:1])) == ""
    for name, one in (("first", first), ("second", second)):
        write_evaluation(one, tmp_path / f"{name}.json")
    files = [str(tmp_path / f"{name}.json") for name in ("first", "second")]
    assert cli.main(["evaluate", *files, "--correlations"]) == 0
    printed = capsys.readouterr().out
    assert f"WARNING: second against first: {says}" in printed
    assert "Rank correlations over gains of 1 method over the first on 30 images" in printed
    assert cli.main(["evaluate", files[1], "--against", files[0]]) == 0
    assert f"WARNING: {says}" in capsys.readouterr().out
    write_evaluation(evaluation(psnr_y=hard), tmp_path / "first.json")
    table = tmp_path / "table.csv"
    assert cli.main(["evaluate", files[0], "--correlations", "--out", str(table)]) == 2
    assert not table.exists(), "it is refused before anything is written"
    assert "--correlations needs two metrics per image and four images" in capsys.readouterr().err
