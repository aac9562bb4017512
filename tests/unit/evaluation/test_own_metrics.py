"""A metric and a protocol of a user's own module, in `evaluate`, `test` and studies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megasr import plugins
from megasr.cli import main
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator, read_evaluation
from megasr.evaluation.protocol import METRICS, PROTOCOLS, WEIGHT_FREE_V1, MetricSpec, Protocol, get_protocol
from megasr.training.protocol_metrics import ProtocolMetrics
from tests.helpers.evaluation_sets import Enlarger, NamedPictures, quiet_trainer
from tests.helpers.tiny_study import TINY_STUDY, run_tiny

IMAGES = Path(__file__).parents[2] / "golden" / "images"
OWN = """
from dataclasses import replace
from megasr.evaluation.protocol import METRICS, MetricSpec, get_protocol, register_metric, register_protocol

def contrast(sr):
    return sr.std()

def brightness_error(sr, hq):
    return (sr.mean() - hq.mean()).abs()

register_metric(MetricSpec("contrast", higher_is_better=True, function=contrast, needs_hq=False))
register_metric(MetricSpec("brightness", higher_is_better=False, function=brightness_error, value_range=(0, 1)))
own = tuple(METRICS[name] for name in ("psnr_y", "ssim_y", "contrast", "brightness"))
register_protocol(replace(get_protocol("weight-free-v1"), name="mine-v1", metrics=own))
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(METRICS._entries), dict(PROTOCOLS._entries)
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "own_metrics")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    yield
    METRICS._entries, PROTOCOLS._entries = before
    plugins._imported.discard("own_metrics")
    sys.modules.pop("own_metrics", None)


def test_evaluate_measures_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sr, hq = tmp_path / "r.json", str(IMAGES / "sr"), str(IMAGES / "hq")
    assert main(["evaluate", sr, "--hq", hq, "--protocol", "mine-v1", "--out", str(out)]) == 0
    means = read_evaluation(out).means
    assert (
        list(means) == ["psnr_y", "ssim_y", "contrast", "brightness"]
        and 0 < means["brightness"] < 0.05 < means["contrast"]
    )
    printed = capsys.readouterr().out
    assert "contrast   ↑" in printed and "brightness ↓" in printed
    assert main(["evaluate", sr, "--protocol", "mine-v1", "--out", str(out)]) == 0
    assert list(read_evaluation(out).means) == ["contrast"], "the one that needs no hq"


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_test_measures_it(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, ProtocolMetrics("mine-v1", ["contrast"]))
    (logged,) = trainer.test(Enlarger(), datamodule=NamedPictures(["a", "b"]), verbose=False)
    assert list(logged) == ["test/contrast"]


def test_a_study_measures_it(tmp_path: Path) -> None:
    result = run_tiny(TINY_STUDY, tmp_path, seeds=[0], protocol=get_protocol("mine-v1"))
    assert all(set(run.summary) == {"psnr_y", "ssim_y", "contrast", "brightness"} for run in result.runs)


def test_the_name_of_the_function_is_a_part_of_the_fingerprint() -> None:
    def other(sr: torch.Tensor) -> float:
        return 0.0

    spec = METRICS["contrast"] if get_protocol("mine-v1") else None
    changed = MetricSpec("contrast", higher_is_better=True, function=other, needs_hq=False)
    assert Protocol("p", 1, (spec,)).fingerprint != Protocol("p", 1, (changed,)).fingerprint


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="either a pyiqa_name or a function"):
        MetricSpec("nothing", higher_is_better=True)
    with pytest.raises(UsageError, match="metric 'contrast' is registered twice"):
        METRICS.register("contrast", METRICS["contrast"])
    low = MetricSpec("low", higher_is_better=True, function=lambda sr, hq: -0.5, value_range=(0, 1))
    image = torch.zeros(1, 3, 16, 16)
    with pytest.raises(MegaSRError, match="low of 'a' is -0.5, not a number from 0 to 1"):
        Evaluator(Protocol("low-v1", 1, (low,))).rows(image, image, ["a"])
    with pytest.raises(UsageError, match="unknown protocol 'mine-v2'; did you mean mine-v1"):
        get_protocol("mine-v2")
    assert WEIGHT_FREE_V1.fingerprint == "1e7481d0"
