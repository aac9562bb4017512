"""Where a checkpoint lies, and what a run's folder holds already; without torch."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from megasr.errors import MegaSRError, UsageError

_ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = {
    "tiny": _ASSETS / "tiny_adapter" / "adapter.ckpt",
    "tiny-one-step": _ASSETS / "tiny_one_step" / "adapter.ckpt",
}
CHOSEN_BY_TRAINER = ("last", "best", "hpc")  # values of ckpt_path that are no paths
METRICS_FILE = "metrics.csv"


def find_checkpoint(source: str | Path) -> Path:
    """The file or folder of a checkpoint or an exported adapter: a name of SHIPPED, anything else is a path.

    Raises:
        UsageError: it is an address.
        MegaSRError: there is none.
    """
    path = SHIPPED.get(str(source), Path(source))
    if not path.exists() and re.match(r"[\w+.:-]+:/", str(source)):
        raise UsageError(f"checkpoint {source} is not on this machine: download it and give the path of the file")
    if not path.exists():
        raise no_checkpoint(source)
    return path


def no_checkpoint(source: str | Path) -> MegaSRError:
    """The error of a missing checkpoint."""
    return MegaSRError(f"no checkpoint {source}: give the path of one that `megasr fit` wrote, or {', '.join(SHIPPED)}")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none when there is no file. A last line that was cut off is left out."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [{key: value for key, value in row.items() if value} for row in csv.DictReader(whole.splitlines())]


def refuse_another_run(config_file: Path, resumes: bool) -> None:
    """Refuse to start a run in a folder that holds one; one that failed before its first step is replaced.

    Raises:
        UsageError: there are checkpoints or rows of numbers, and the new run does not resume.
    """
    folder = config_file.parent
    if resumes or not config_file.is_file():
        return
    checkpoints = (path for pattern in ("*.ckpt", "checkpoints/**/*.ckpt") for path in folder.glob(pattern))
    if any(checkpoints) or read_rows(folder / METRICS_FILE):
        raise UsageError(
            f"{folder} already holds a run: resume it with --ckpt_path last, or give another --trainer.default_root_dir"
        )
