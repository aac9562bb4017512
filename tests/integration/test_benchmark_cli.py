"""`megasr test --data realsr --root DIR`: what is typed, what it becomes, and what the result says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from megasr import cli
from megasr.commands.lightning_cli import expand_benchmark
from megasr.errors import UsageError
from megasr.evaluation.evaluator import read_evaluation
from megasr.images import write_png
from megasr.prior import save_prior
from tests.helpers.networks import random_prior

_EXPANDED = ["--data=BenchmarkDataModule", "--data.benchmark=realsr"]


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        (["test", "--data", "realsr", "--root", "a b"], ["test", *_EXPANDED, "--data.root=a b"]),
        (
            ["test", "--root=a", "--config", "c", "--data=realsr"],
            ["test", "--config", "c", *_EXPANDED, "--data.root=a"],
        ),
        (
            ["validate", "--data", "realsr", "--data.batch_size", "2", "--root", "a", "--x", "y"],
            ["validate", *_EXPANDED, "--data.root=a", "--data.batch_size", "2", "--x", "y"],
        ),
        (["test", "--data=realsr", "--data.root", "a"], ["test", *_EXPANDED, "--data.root", "a"]),
        (["fit", "--data", "SceneDataModule", "--data.seed=1"], ["fit", "--data", "SceneDataModule", "--data.seed=1"]),
        (["test", "--config", "c"], ["test", "--config", "c"]),
    ],
)
def test_a_benchmark_is_written_out(typed: list[str], becomes: list[str]) -> None:
    assert expand_benchmark(typed) == becomes


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["test", "--data", "realsr"], "--data realsr needs --root, .*realsr is 100 lq.*StableSR-TestSets"),
        (["test", "--config", "c", "--root", "a"], "give --data one of realsr, drealsr"),
        (["test", "--data", "raelsr", "--root", "a"], "unknown benchmark 'raelsr'; did you mean realsr"),
        (["test", "--data", "realsr", "--root", "--x"], "--root needs a value"),
        (["test", "--root", "a", "--data"], "--data needs a value"),
        (["fit", "--data", "realsr", "--root", "a"], "realsr is a benchmark: it is not for training"),
    ],
)
def test_what_does_not_go_together_is_said(typed: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        expand_benchmark(typed)


def test_a_benchmark_is_measured_under_its_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, size in (("lq", 128), ("gt", 512)):
        write_png(np.full((size, size, 3), 90, np.uint8), tmp_path / "set" / folder / "a.png")
    save_prior(random_prior(), tmp_path / "prior")
    # What a run has written: its data, and the protocol that stands where none was chosen.
    config = tmp_path / "config.yaml"
    data = {"class_path": "SceneDataModule", "init_args": {"crop_size_px": 32, "batch_size": 1, "seed": 3}}
    model = {"prior": str(tmp_path / "prior"), "adapter": {"guidance": ["canny"]}, "sampler": {"num_steps": 1}}
    config.write_text(yaml.safe_dump({"data": data, "model": model, "evaluation": {"protocol": "weight-free-v1"}}))
    options = ["test", "--config", str(config), "--data", "drealsr", "--root", str(tmp_path / "set")]
    assert cli.main(options) == 2
    assert "1 images, the set has 93" in capsys.readouterr().err

    options += ["--data.allow_subset=true", "--evaluation.metrics=[psnr]", "--trainer.logger=false"]
    options += ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert cli.main([*options, "--model.scale_factor=2"]) == 2
    assert "model.scale_factor is 2, data.scale_factor is 4" in capsys.readouterr().err
    assert cli.main([*options, "--evaluation.protocol=weight-free-v1"]) == 2
    assert "metric of protocol weight-free-v1 'psnr'" in capsys.readouterr().err, "what was typed holds"
    assert cli.main([*options, "--evaluation.metrics=[]"]) == 2
    assert "evaluation.metrics is empty" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="no --ckpt_path: this measures an untrained adapter"):
        assert cli.main(options) == 0
    found = read_evaluation(tmp_path / "run" / "drealsr" / "test.json")
    assert (found.data, found.protocol, found.keys) == ("drealsr", "stablesr-crops-v1", ("a",))
    assert found.provenance["benchmark_images"] == [1, 93]
