"""How the processes of a training are ended."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from megasr.training import last_checkpoint as ending


def test_all_processes_together_are_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_PATIENCE_S", 0.5)
    launcher = object.__new__(_SubprocessScriptLauncher)
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    launcher.procs = [subprocess.Popen(hangs) for _ in range(4)]
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), global_rank=0)
    began = time.monotonic()
    assert ending._end_processes(trainer) == [f"rank {rank} hangs" for rank in (1, 2, 3, 4)]  # type: ignore[arg-type]
    assert time.monotonic() - began < 1.5
    assert [process.wait(9) for process in launcher.procs] == [-9] * 4
