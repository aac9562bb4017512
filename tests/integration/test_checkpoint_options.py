"""--ckpt_path of `megasr fit`, `validate` and `test`: nothing is fetched, and nothing of a checkpoint runs."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megasr import cli
from tests.helpers.training import prior_folder

COMMANDS = ["fit", "validate", "test"]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What appears when the hostile checkpoint beside it has run."""
    path = tmp_path / "it ran"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.5.0", "more": Hostile(path)}, tmp_path / "a.ckpt")
    return path


@pytest.fixture
def server(mark: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, what was asked for) of a server that has the hostile checkpoint."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *message: Any) -> None:
            asked.append(str(message))

    serve = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(mark.parent)))
    threading.Thread(target=serve.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serve.server_port}/a.ckpt", asked
    serve.shutdown()
    serve.server_close()


def options(folder: Path, *more: str) -> list[str]:
    return [
        f"--model.prior={prior_folder()}", "--model.adapter.guidance=[canny]", "--model.adapter.controlnet=false",
        "--data=SceneDataModule", "--data.batch_size=1", "--data.crop_size_px=32", "--data.eval_samples=1",
        "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={folder / 'run'}", *more,
    ]  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    """The line with which a command ends."""
    assert cli.main([command, *arguments]) in (1, 2)
    printed = capsys.readouterr().err
    assert "likely succeed" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("megasr: error: ")]
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_is_refused_before_anything_is_asked_of_it(
    command: str, server: tuple[str, list[str]], mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, asked = server
    says = f"{address} is not on this machine: download it and give the path of the file"
    assert says in refused(capsys, command, *options(tmp_path, f"--ckpt_path={address}"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"ckpt_path": address}))
    assert says in refused(capsys, command, *options(tmp_path, f"--config={tmp_path / 'recipe.yaml'}"))
    assert asked == []
    assert not mark.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hostile_checkpoint_does_not_run_whatever_is_asked_for(
    command: str, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = f"--ckpt_path={tmp_path / 'a.ckpt'}"
    line = refused(capsys, command, *options(tmp_path, checkpoint, "--weights_only=false"))
    assert "--weights_only false lets a checkpoint run code: leave it out" in line
    # A callback that saves takes the place of LastCheckpoint, which used to bring the safe reader.
    keeps = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {save_last: true}}"
    line = refused(capsys, command, *options(tmp_path, checkpoint, f"--trainer.callbacks=[{keeps}]"))
    assert f"cannot read checkpoint {tmp_path / 'a.ckpt'}: it holds posix.mkdir; only tensors and plain data" in line
    assert not mark.exists()


@pytest.mark.parametrize(
    ("option", "reader"),
    [
        ("plugins", "lightning.pytorch.plugins.io.AsyncCheckpointIO"),
        ("strategy", "lightning.pytorch.strategies.ModelParallelStrategy"),
    ],
)
def test_lightnings_own_readers_are_refused(
    option: str, reader: str, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = f"--trainer.{option}={{class_path: {reader}}}"
    line = refused(capsys, "test", *options(tmp_path, f"--ckpt_path={tmp_path / 'a.ckpt'}", chosen))
    assert f"{reader.rpartition('.')[2]} " in line
    assert "can run code of a checkpoint; take the strategy auto, ddp or megasr's ShardedStrategy" in line
    assert not mark.exists()


def test_a_fit_does_not_go_on_from_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", *options(tmp_path)]) == 0
    path = tmp_path / "run" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"][...] = torch.nan
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    for name in ("optimizer_states", "lr_schedulers", "loops"):
        del checkpoint[name]
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    for name, says in (
        ("nan.ckpt", "optimizer_states.0.state.0.exp_avg holds no finite real numbers"),
        ("weights.ckpt", "no training can go on from it, it lacks optimizer_states, lr_schedulers, loops; start one"),
    ):
        resumed = options(tmp_path, f"--ckpt_path={tmp_path / name}", "--trainer.max_steps=2")
        assert f"{tmp_path / name}: {says}" in refused(capsys, "fit", *resumed)
    assert cli.main(["validate", *options(tmp_path, f"--ckpt_path={tmp_path / 'weights.ckpt'}")]) == 0
