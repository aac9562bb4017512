"""Records of benchmarks: where and when, with which versions, numbers were measured."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megasr.errors import UsageError

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "pyiqa")


def publish(benchmark: str, settings: dict[str, Any], results: dict[str, Any], output: Path | None) -> None:
    """Print a record as JSON and, when asked, write it to a file.

    Args:
        benchmark: its name.
        settings: what was asked for.
        results: what was measured, units in the names.
        output: file for the same text.
    """
    record = {
        "benchmark": benchmark,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "hardware": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | _versions(),
        "settings": settings,
        "results": results,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")


def read_record(benchmark: str) -> dict[str, Any]:
    """The newest kept record of a benchmark. Raises UsageError when there is none."""
    records = sorted(RESULTS.glob(f"{benchmark}--*.json"), key=lambda path: path.stem.rpartition("--")[2])
    if not records:
        raise UsageError(f"{RESULTS} holds no record of {benchmark}: run python -m experiments.benchmarks.{benchmark}")
    record: dict[str, Any] = json.loads(records[-1].read_text())
    return record


def _versions() -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu_name() -> str:
    """What the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The commit of the checkout, with "+" when files differ from it."""
    commands = (["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain"])
    head, changed = (subprocess.run(words, capture_output=True, text=True).stdout.strip() for words in commands)
    return head + ("+" if changed else "")
