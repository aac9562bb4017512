"""The example for notebooks runs as it stands, in fewer steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.compare_adapters import main


def test_adapters_are_compared_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    main(steps=1)
    table = capsys.readouterr().out
    assert all(word in table for word in ("bicubic", "edges", "plain", "fsim"))
    assert (tmp_path / "runs" / "edges_or_not" / "fsim.png").is_file()
