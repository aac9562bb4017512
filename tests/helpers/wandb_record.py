"""An offline W&B run, read back by W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def offline_runs(folder: Path) -> list[Path]:
    """The record of every offline run below a folder, oldest first."""
    return sorted(folder.rglob("*.wandb"), key=lambda path: path.parent.name)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Everything that a run has recorded, in order."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a run: key -> value; of a picture or table key.field -> value."""
    return [record["history"]["item"] for record in read_records(path) if record["type"] == "history"]


def artifacts(path: Path) -> dict[str, dict[str, Path]]:
    """Name of every artifact of a run -> name of a file in it -> where the file waits to be sent."""
    logged = [record["artifact"] for record in read_records(path) if record["type"] == "artifact"]
    return {
        one["name"]: {entry["path"]: Path(entry["local_path"]) for entry in one["manifest"]["contents"]}
        for one in logged
    }
