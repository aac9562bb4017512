"""`megasr study` on a user's YAML with two evaluation sets: run, evaluated anew, grown, and refused when changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import pytest
import yaml

from ablations import conclusions, runner
from ablations.plan import Components, default_components
from data_pipelines.photos import EVAL_PHOTOS, load_photo
from megasr import cli
from megasr.evaluation.intervals import paired_bootstrap
from megasr.evaluation.protocol import get_protocol
from megasr.images import center_crop, write_png
from tests.helpers.metric_weights import write_metric_weights
from tests.helpers.tiny_study import TinyAdapter, TinyModule

PHOTOS = EVAL_PHOTOS[:3]


@dataclass(frozen=True)
class ShownSampler:
    """Which maps the stand-in is shown."""

    shown_guidance: tuple[str, ...] = ()


AS_ADAPTER = TinyAdapter()


class ShownModule(TinyModule):
    """The stand-in of a model, trained once for all combinations: each map that is shown makes it brighter."""

    def __init__(
        self,
        adapter: TinyAdapter = AS_ADAPTER,
        scale_factor: int = 4,
        seed: int = 0,
        sampler: ShownSampler = ShownSampler(),
    ) -> None:
        super().__init__(adapter, scale_factor, seed)
        self.shift = sum(0.02 + 0.01 * (name == "canny") for name in sampler.shown_guidance)


def _config(folder: Path) -> dict[str, Any]:
    """Three combinations, which one training per seed serves."""
    return {
        "study": {
            "name": "mine",
            "question": "Which map helps?",
            "primary_metric": "scenes/fsim",
            "holdout_metric": "photographs/lpips",
            "seeds": [0, 1],
            "combinations": {"of": ["canny", "superpixel"], "sizes": [1], "path": "model.sampler.shown_guidance"},
            "weights_dir": str(folder / "weights"),
            "evaluation": {
                "scenes": {},
                "photographs": {
                    "data": "images",
                    "root": str(folder / "photographs"),
                    "degradation": "stablesr_mild",
                    "protocol": "paired-v1",
                    "limit": 2,
                },
            },
        },
        "model": {"sampler": {"shown_guidance": []}},
        "data": {
            "class_path": "SceneDataModule",
            "init_args": {"pool": 8, "train_samples": 16, "eval_samples": 2, "batch_size": 2, "crop_size_px": 32}
            | {"eval_crop_size_px": 64, "degradation": "bicubic"},
        },
        "trainer": {"max_steps": 2, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
    }


def _times(folder: Path, *names: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for name in names for path in folder.rglob(name)}


@pytest.mark.filterwarnings("ignore")
def test_a_study_of_ones_own_on_scenes_and_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    components = Components(ShownModule, default_components().data, lightning.Trainer)
    monkeypatch.setattr(runner, "default_components", lambda: components)
    monkeypatch.setattr(conclusions, "paired_bootstrap", partial(paired_bootstrap, resamples=100))
    for photo in PHOTOS:
        write_png(center_crop(load_photo(photo.name), 64), tmp_path / "photographs" / f"{photo.name}.png")
    output, config = tmp_path / "out", _config(tmp_path)

    def study(action: str, *options: str, ends: int = 0) -> str:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        assert cli.main(["study", action, str(tmp_path / "mine.yaml"), "--output", str(output), *options]) == ends
        printed = capsys.readouterr()
        return printed.err if ends else printed.out

    (tmp_path / "weights").mkdir()
    said = study("run", "--per-device", "1", ends=1)
    assert "weights of metrics are missing: lpips lacks alexnet-owt-7be5be79.pth (http" in said
    assert "; dists lacks" in said
    assert not list(output.rglob("*.ckpt")), "before anything is trained"
    metrics = (get_protocol("paired-v1").metric(name) for name in ("lpips", "dists"))
    write_metric_weights(tmp_path / "weights", {name for metric in metrics for name in metric.weights})

    said = study("plan", "--no-probe")
    assert "7 runs: 0 done, 7 to do, with 2 trainings" in said and "evaluation sets scenes, photographs" in said
    study("run", "--per-device", "1")
    scores = pd.read_csv(output / "scores.csv")
    assert {"scenes/fsim", "photographs/lpips", "photographs/dists"} <= set(scores)
    photographs = scores.dropna(subset="photographs/lpips")
    assert photographs.groupby(["ablation", "seed"], dropna=False).size().eq(2).all() and len(photographs) == 7 * 2
    page = (output / "index.html").read_text()
    assert "2 of scenes, 2 of photographs" in page and "The hold-out metric photographs/lpips agrees with" in page

    before = _times(output, "adapter.ckpt", "training.json", "*.png", "restored.json")
    study("evaluate", "--protocol", "weight-free-v2", ends=2)  # it does not measure the hold-out metric
    del config["study"]["holdout_metric"]
    assert "holdout_metric: images-" in study("evaluate", ends=2), "a study may not drop what it said beforehand"
    config["study"] |= {"holdout_metric": "photographs/lpips"}
    config["study"]["evaluation"]["scenes"] = {"protocol": "weight-free-v2"}
    study("evaluate", "--per-device", "1")
    assert _times(output, "adapter.ckpt", "training.json", "restored.json") == {
        path: time for path, time in before.items() if path.suffix != ".png"
    }
    assert "scenes/spectral_peaks" in json.loads((output / "results.json").read_text())["means"]["canny"]

    config["study"]["evaluation"]["again"] = {**config["study"]["evaluation"]["photographs"], "limit": 3}
    assert "7 runs: 0 done, 7 to do, with 0 trainings" in study("plan", "--no-probe"), "a set needs no training"
    config["study"]["evaluation"]["again"]["limit"] = 1
    assert "evaluation set again has images of one photograph" in study("evaluate", ends=2)
    config["trainer"]["max_steps"] = 3
    assert "reference: trainer.max_steps 2 -> 3" in study("run", ends=2)
