"""What a person sees while a command runs: one line per event, and nothing that asks for nothing."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from rich.progress import BarColumn, MofNCompleteColumn

from megasr import console as progress
from megasr.console import is_noise, quiet_lightning, quiet_warnings
from tests.helpers.sources import ROOT

RUN = (
    "--config=experiments/tiny/controlnet_only.yaml --data.pool=2 --data.train_samples=16 --data.eval_samples=2 "
    "--data.batch_size=2 --trainer.accelerator=cpu --trainer.max_steps=2 --trainer.log_every_n_steps=1"
)


def test_a_training_says_one_line_per_event(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megasr.cli", "fit", *RUN.split(), f"--trainer.default_root_dir={tmp_path}"]
    # Lightning has a hint for machines with SLURM, and one for those with a GPU that is not used.
    plain = {**os.environ, "PATH": str(Path(sys.executable).parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=plain)
    assert done.stdout == ""
    said = done.stderr.replace(str(tmp_path), "FOLDER")
    assert [re.sub(r"[\d.]+", "N", line) for line in said.splitlines()] == [
        "N M parameters are trained, N M are frozen",
        "rendering scenes  N/N",
        "global batch N = N images x N device(s) x N accumulated; an epoch is N steps; lq by realesrgan_strong",
        "training  N/N  train/loss N",
        "N steps are done; the run is in FOLDER",
    ]


@pytest.mark.parametrize(
    ("message", "category", "noise"),
    [
        ("Found 579 module(s) in eval mode at the start of training.", UserWarning, True),
        ("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, True),
        ("pkg_resources is deprecated as an API", UserWarning, True),
        ("The NVIDIA driver on your system is too old (found version 11040)", UserWarning, False),
        ("This DataLoader will create 16 worker processes in total. Our suggested max is 2", UserWarning, False),
        ("The number of training batches (4) is smaller than the logging interval", UserWarning, False),
    ],
)
def test_a_warning_is_shown_where_something_can_be_done(message: str, category: type[Warning], noise: bool) -> None:
    assert is_noise(message, category) is noise


def test_lightning_is_filtered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [handler])
    for _ in range(2):
        quiet_lightning()
    assert len(handler.filters) == 1


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    quiet_warnings()
    for text, category in (("the map cache\n is full", UserWarning), ("old", DeprecationWarning)):
        warnings.showwarning(text, category, "x.py", 1)
    assert capsys.readouterr().err == "megasr: warning: the map cache is full\n"


def test_without_a_terminal_progress_is_a_line_per_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with progress.progress_bars(BarColumn(), MofNCompleteColumn()) as advance:
        for done in range(1, 301):
            now[0] += 0.5
            advance("[red]measuring[/red]", done, 300)
        advance("[red]measuring[/red]", 300, 300)
        advance("writing", 1, 2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 3
    assert [re.search(r"(\d+)/300", line).group(1) for line in lines] == ["122", "243", "300"]  # type: ignore[union-attr]
    assert lines[0].startswith("[red]measuring[/red]  122/300  0:0") and lines[0].endswith(" left")
