"""`megasr fit`, `validate` and `test` with a random tiny prior and rendered scenes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_pipelines.embedded import SceneDataModule
from megasr import cli
from megasr.commands.lightning_cli import read_fit
from megasr.images import write_png
from megasr.prior import save_prior
from megasr.rng import numpy_generator
from tests.helpers.networks import random_prior


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    save_prior(random_prior(), folder)
    return folder


def recipe(prior: Path, output: Path) -> list[str]:
    """Options of a run of one step."""
    return [
        f"--model.prior={prior}",
        "--model.seed=7",
        "--model.adapter.guidance=[canny]",
        "--model.objective.validation_timesteps=1",
        "--data=SceneDataModule",
        "--data.batch_size=1",
        "--data.crop_size_px=32",
        "--data.eval_samples=1",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=1",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.logger=false",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={output}",
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model.sede=1", "--data=SceneDataModule"], "unknown key 'model.sede'; did you mean model.seed"),
        (["--model.see=1", "--data=SceneDataModule"], "unknown key 'model.see'; did you mean model.seed"),
        (["--data=SceneDatModule"], "unknown data module 'SceneDatModule'; did you mean SceneDataModule"),
        (
            ["--data=PhotoDataModule", "--data.batch_sise=1"],
            "key of PhotoDataModule 'batch_sise'; did you mean batch_size",
        ),
        (["--data=SceneDataModule", "--model.adapter.gate=liner"], "must be one of linear, channel, scalar"),
        (["--data=SceneDataModule", "--model.adapter.saft_width=0"], "adapter.saft_width must be at least 1, got 0"),
        (
            ["--data=FolderDataModule", "--data.train_root=nowhere", "--data.eval_root=x"],
            "error: nowhere: no such folder",
        ),
        (["--data=SceneDataModule", "--seed_everything=1"], "seed_everything follows model.seed"),
        (["--data=SceneDataModule", "--model.scale_factor=2"], "model.scale_factor is 2, data.scale_factor is 4"),
        (["--config=absent.yaml"], "absent.yaml"),
        ([], "no data: name a data module"),
    ],
)
def test_wrong_options_are_one_line_and_2(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", *options]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("megasr: error: ")]
    assert says in line
    assert "Union" not in line, "what a class says, not what the parser puts around it"


def test_wrong_keys_in_a_file_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: SceneDataModule\nmodel:\n  adapter:\n    gaet: linear\n")
    assert cli.main(["fit", "--config", str(config)]) == 2
    assert "unknown key 'model.adapter.gaet'; did you mean model.adapter.gate" in capsys.readouterr().err


def test_the_home_folder_is_put_for_a_tilde_wherever_a_shell_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(
        "data:\n  class_path: FolderDataModule\n  init_args: {train_root: ~/photos}\n"
    )
    callback = "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {dirpath: ~/kept}}]"
    config = read_fit(
        ["--config=~/recipe.yaml", "--data.eval_root=~/eval", "--trainer.default_root_dir=~/runs", callback]
    )
    found = (config["data"]["init_args"], config["trainer"])
    assert [found[0]["train_root"], found[0]["eval_root"]] == [f"{tmp_path}/photos", f"{tmp_path}/eval"]
    assert found[1]["default_root_dir"] == f"{tmp_path}/runs"
    assert found[1]["callbacks"][0]["init_args"]["dirpath"] == f"{tmp_path}/kept"


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("# für Windows\r\nseed_everything: 1".encode("latin-1"))
    for words in ([f"--config={path}"], ["--config", str(path)]):
        assert cli.main(["fit", *words]) == 2
        assert f"--config {path}: not UTF-8 (invalid" in capsys.readouterr().err
    path.write_bytes("\ufeffmodel:\r\n  seed: 5\r\n".encode())  # as Windows's editor saves UTF-8
    assert read_fit([f"--config={path}", "--data=PhotoDataModule"])["model"]["seed"] == 5


def test_a_run_keeps_its_config_and_is_not_overwritten(
    prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = recipe(prior, tmp_path / "run")
    assert cli.main(["fit", *options]) == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["model"]["seed"] == 7
    assert resolved["model"]["adapter"]["guidance"] == ["canny"]
    assert resolved["data"]["init_args"]["batch_size"] == 1

    capsys.readouterr()
    assert cli.main(["fit", *options]) == 2
    assert "already holds a run" in capsys.readouterr().err

    (checkpoint,) = (tmp_path / "run").rglob("*.ckpt")
    resumed = [*options, "--trainer.max_steps=2", f"--ckpt_path={checkpoint}"]
    for changes, says in (
        (["--model.seed=8", "--trainer.gradient_clip_val=0.5"], "another model.seed, trainer.gradient_clip_val: set"),
        (
            ["--data.batch_size=2"],
            "another global batch (data.batch_size x devices x trainer.accumulate_grad_batches): ",
        ),
    ):
        assert cli.main(["fit", *resumed, *changes]) == 2
        assert says in capsys.readouterr().err
        assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == resolved
    assert cli.main(["fit", *resumed, "--data.batch_size=2", "--allow_changed_config=true"]) == 0
    assert not yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["allow_changed_config"]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["max_steps"] == 2

    # A checkpoint's hyper-parameters do not replace what was typed.
    validated = [f"--ckpt_path={checkpoint}", "--model.sampler.num_steps=3"]
    assert cli.main(["validate", "--config", str(tmp_path / "run" / "config.yaml"), *validated]) == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.validate.yaml").read_text())
    assert resolved["model"]["sampler"]["num_steps"] == 3

    config = ["--config", str(tmp_path / "run" / "config.yaml"), "--model.sampler.num_steps=1"]
    assert cli.main(["test", *config, f"--ckpt_path={checkpoint}", "--evaluation.protocol=weight-fre-v1"]) == 2
    assert "did you mean weight-free-v1" in capsys.readouterr().err
    assert cli.main(["test", *config, f"--ckpt_path={checkpoint}", "--data.crop_size_px=64"]) == 0
    measured = json.loads((tmp_path / "run" / "test.json").read_text())
    assert [row["key"] for row in measured["rows"]] == ["eval-scene/0"]
    assert measured["protocol"] == "weight-free-v1"
    resolved = yaml.safe_load((tmp_path / "run" / "config.test.yaml").read_text())
    tested = json.dumps({"model": resolved["model"], "data": resolved["data"]}, sort_keys=True)
    assert measured["provenance"]["config"] == hashlib.sha256(tested.encode()).hexdigest()[:16]
    assert measured["provenance"]["checkpoint"]["path"] == str(checkpoint)
    assert measured["means"]["psnr_y"] == measured["rows"][0]["psnr_y"] > 5


class WithoutArguments(SceneDataModule):
    """A data module of somebody's own that has nothing to configure."""

    def __init__(self) -> None:
        super().__init__(crop_size_px=32, batch_size=1, train_samples=2, eval_samples=1)


def test_a_data_module_without_arguments_trains(prior: Path, tmp_path: Path) -> None:
    options = [option for option in recipe(prior, tmp_path / "run") if not option.startswith("--data")]
    assert cli.main(["fit", *options, f"--data={__name__}.WithoutArguments"]) == 0
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_photographs_are_degraded_and_cropped_as_the_prior_needs_where_nothing_else_is_said(
    prior: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        picture = numpy_generator(0, number).integers(0, 256, (130, 140, 3), dtype=np.uint8)
        write_png(picture, tmp_path / "photos" / f"{number}.png")
    photos = ["--data=FolderDataModule", f"--data.train_root={tmp_path / 'photos'}", "--data.eval_samples=1"]
    shared = [option for option in recipe(prior, tmp_path / "run") if "prior" not in option and "--data" not in option]
    assert cli.main(["fit", *shared, *photos, "--data.batch_size=1"]) == 0
    data = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["init_args"]
    assert (data["crop_size_px"], data["degradation"]) == (128, "realesrgan_strong"), "the tiny prior's size"
    assert "data.crop_size_px is not set: 128, which the prior tiny was trained on" in caplog.text

    def crop(*options: str) -> int:
        size: int = read_fit([*photos, *options])["data"]["init_args"]["crop_size_px"]
        return size

    unet = json.loads((prior / "unet" / "config.json").read_text())
    for native, px in ((24, 24 * 4), (None, 512)):
        folder = tmp_path / f"prior-{native}"
        shutil.copytree(prior, folder)
        (folder / "unet" / "config.json").write_text(json.dumps({**unet, "sample_size": native}))
        assert crop(f"--model.prior={folder}") == px
    assert crop("--data.crop_size_px=64") == 64
    assert crop("--model.scale_factor=3", "--data.scale_factor=3") == 96, "a multiple of 3 and of the prior's 16"
