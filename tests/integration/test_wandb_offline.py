"""What `megasr fit` logs by default: metrics.csv and an offline W&B run, read back with W&B's own reader."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megasr import cli
from megasr.training.checkpoint import read_settings
from megasr.training.folders import read_rows
from tests.helpers.towers import random_tower
from tests.helpers.training import prior_folder
from tests.helpers.wandb_record import artifacts, history, offline_runs, read_records

pytestmark = pytest.mark.filterwarnings("ignore")
# Of one block, and of the heat map's rows.
SITE = "unet.up2.1"


def recipe(folder: Path, steps: int, *more: str) -> list[str]:
    return [
        "fit",
        f"--model.prior={prior_folder()}",
        "--model.adapter.guidance=[canny, superpixel]",
        "--model.adapter.saft_width=8",
        "--model.optimizer.learning_rate=1e-3",
        "--model.objective.validation_timesteps=1",
        "--model.sampler.num_steps=1",
        "--data=PhotoDataModule",
        "--data.batch_size=2",
        "--data.crop_size_px=32",
        "--data.train_samples=4",
        "--data.eval_samples=3",
        f"--trainer.max_steps={steps}",
        "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={folder}",
        "--monitor.every_n_steps=2",
        "--monitor.images=2",
        *more,
    ]


def logged(rows: list[dict[str, Any]], step: str) -> Counter[tuple[int, str]]:
    """How often every number was logged at every step (W&B's own keys and Lightning's epoch aside)."""
    own = ("_runtime", "_timestamp", "_step", "_wandb", "trainer/global_step", "epoch", "step")
    return Counter((int(row[step]), key) for row in rows for key in row if key not in own)


def test_an_offline_run_holds_numbers_pictures_and_a_table(tmp_path: Path) -> None:
    tower, folder = random_tower(tmp_path), tmp_path / "run"
    image = ["--model.adapter.image=true", "--model.adapter.image_width=24"]
    vision = [f"--model.vision.weights={tower.weights}", f"--model.vision.model={tower.model}"]
    assert cli.main(recipe(folder, 3, *image, *vision)) == 0
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.yaml", "last.ckpt", "previous.ckpt", "metrics.csv", "wandb", "wandb_id.txt"
    }  # fmt: skip
    (record,) = offline_runs(folder)
    rows = history(record)
    assert [row["_step"] for row in rows] == [0, 1, 2]
    assert {"train/loss", "train/images_per_s", "grad_norm/total", "grad_norm/csm", "grad_norm/msfm"} <= set(rows[0])
    assert {"grad_norm/controlnet", "grad_norm/lq_encoder"} <= set(rows[0])
    assert any(key.startswith("train/loss_t") for key in rows[0])
    branches = (f"gate/{SITE}", f"modulation/{SITE}/canny", f"modulation/{SITE}/region")
    assert [rows[0][key] for key in branches] == [0, 0, 0], "zero-initialised"
    assert all(rows[1][key] > 0 for key in branches)

    monitored = rows[1]
    assert not any(key.startswith("monitor/") for row in (rows[0], rows[2]) for key in row)
    assert {"val/psnr_y", "val/ssim_y", "val/fsim", "val/loss"} <= set(monitored)
    assert monitored["monitor/images.count"] == 2
    assert all("after 2 steps: psnr_y" in caption for caption in monitored["monitor/images.captions"])
    files = record.parent / "files"
    pictures = [*monitored["monitor/images.filenames"], monitored["monitor/guidance_use.path"]]
    assert all((files / path).is_file() for path in pictures)
    table = json.loads((files / monitored["monitor/per_image.path"]).read_text())
    assert table["columns"] == ["step", "key", "psnr_y", "ssim_y", "gmsd", "fsim", "nlpd", "spectral_peaks", "sr"]
    assert [row[0] for row in table["data"]] == [2, 2]
    psnr = [row[2] for row in table["data"]]
    assert sum(psnr) / 2 == pytest.approx(monitored["val/psnr_y"])
    assert len(list((folder / "wandb" / "artifacts").rglob("*"))) >= 4, "the table's pictures lie with the run"

    (started,) = (item["run"] for item in read_records(record) if item["type"] == "run")
    assert started["config"]["update"]["model"]["adapter"]["guidance"] == ["canny", "superpixel"]
    columns = started["config"]["update"]["guidance"]
    assert {name for name, used in columns.items() if used} == {"canny", "superpixel"}
    assert columns["hed"] is False
    assert (folder / "wandb_id.txt").read_text().split() == [started["run_id"]]
    media = ("monitor/images", "monitor/guidance_use", "monitor/per_image")
    scalars = {(step, key) for step, key in logged(rows, "_step") if not key.startswith(media)}
    assert set(logged(read_rows(folder / "metrics.csv"), "step")) == scalars, "the CSV has the same numbers"


def test_a_run_that_was_killed_goes_on_under_its_id_and_logs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    assert cli.main(recipe(tmp_path, 3)) == 0
    monkeypatch.delenv("WANDB_LOG_MODEL")
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "kept")
    assert cli.main(recipe(tmp_path, 5, "--ckpt_path=last")) == 0
    before = read_rows(tmp_path / "metrics.csv")
    shutil.move(tmp_path / "kept", tmp_path / "last.ckpt")  # as if it was killed at step 5, with a checkpoint of step 3
    for steps in (8, 9):  # the checkpoint of step 8 is one of the end of an epoch
        assert cli.main(recipe(tmp_path, steps, "--ckpt_path=last")) == 0
    records = offline_runs(tmp_path)
    assert len(records) == 4
    assert len({path.name for path in records}) == 1, "one id"
    first, *others = map(artifacts, records)
    (weights,) = first[f"model-{(tmp_path / 'wandb_id.txt').read_text().strip()}"].items()
    assert weights[0] == "last.ckpt"
    assert read_settings(weights[1])["global_step"] == 3
    assert not any(name.startswith("model-") for logged in others for name in logged), "nobody has asked"
    parts = [history(path) for path in records]
    assert [[row["_step"] for row in part] for part in parts] == [[0, 1, 2], [3, 4], [5, 6, 7], [8]]
    rows = read_rows(tmp_path / "metrics.csv")
    assert rows[: len(before)] == before
    for count in (logged(rows, "step"), logged([row for part in parts for row in part], "_step")):
        assert set(count.values()) == {1}
        for key in ("train/loss", "train/images_per_s"):
            assert {step for step, logged_key in count if logged_key == key} == set(range(9))
        for key in ("val/psnr_y", "val/loss"):
            assert {step for step, logged_key in count if logged_key == key} >= {1, 3, 5, 7}


def test_a_fit_that_fails_before_its_first_step_leaves_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(recipe(tmp_path, 2, "--ckpt_path=last")) == 2
    assert "there is no last.ckpt in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert cli.main(recipe(tmp_path, 2, "--monitor.protocol=stablesr-crops-v1")) == 2
        assert "measures 512 px" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").is_file()
    assert cli.main(recipe(tmp_path, 2)) == 0
    assert [0, 1] in [[row["_step"] for row in history(record)] for record in offline_runs(tmp_path)]


def test_what_is_logged_where_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = tmp_path / "disabled"
    assert cli.main(recipe(folder, 2)) == 0
    assert not (folder / "wandb").exists()
    assert any("val/psnr_y" in row for row in read_rows(folder / "metrics.csv"))

    monkeypatch.setenv("WANDB_MODE", "offline")
    capsys.readouterr()
    assert cli.main(recipe(folder, 2)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert not (folder / "wandb").exists(), "nothing is opened for a run that is refused"

    given = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'given'}"]
    assert cli.main(recipe(tmp_path / "other", 2, *given)) == 0
    (metrics,) = tmp_path.glob("given/**/metrics.csv")
    assert "val/psnr_y" in metrics.read_text().splitlines()[0]
    assert {path.name for path in (tmp_path / "other").iterdir()} == {".lock", "last.ckpt"}
