"""What one run leaves behind, and how it is read back.

`<run_id>/` holds config.yaml, sr/<key>.png, adapter.ckpt (trained runs) and metrics.json. metrics.json is written last
and whole: a folder without it is not a finished run, whatever else it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from ablations.plan import RunPlan
from ablations.registry import Study
from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Row
from megasr.evaluation.protocol import Protocol
from megasr.files import write_whole

METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        run_id: name of its folder.
        study, ablation, seed: what it is; ablation "bicubic" has no seed.
        fingerprint: of the plan (settings and prior); code is not part of it, see `commit`.
        protocol: {"name", "fingerprint"} of the protocol.
        rows: one {"key", metric: value} per image.
        summary: metric -> mean over the images.
        steps: training steps taken.
        train_s, evaluate_s: seconds of training, and of restoring and measuring.
        device: what it ran on.
        commit: git commit of the code, with "+changes" when the tree was not clean; None outside a repository.
        versions: package -> version.
        tracking: path or folder of the W&B run, None when there is none.
    """

    run_id: str
    study: str
    ablation: str
    seed: int | None
    fingerprint: str
    protocol: dict[str, str]
    rows: list[Row]
    summary: dict[str, float]
    steps: int
    train_s: float
    evaluate_s: float
    device: str
    commit: str | None
    versions: dict[str, str]
    tracking: str | None


@dataclass(frozen=True)
class StudyResult:
    """All runs of a study.

    Attributes:
        study: the study.
        protocol: how the numbers were taken.
        runs: finished runs in the order of the plan, bicubic first.
        output: folder that holds the run folders.
        group: id of study and recipe; W&B groups the runs by it.
        reused: ids of runs that were finished before this call.
        failed: run id -> reason, in one line, of the runs that failed in this call.
    """

    study: Study
    protocol: Protocol
    runs: tuple[RunResult, ...]
    output: Path
    group: str
    reused: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Seeds that the reference and every ablation have finished, in the order of the plan: what can be paired."""
        names = [self.study.reference.name, *(ablation.name for ablation in self.study.ablations)]
        done = {(run.ablation, run.seed) for run in self.runs}
        planned = dict.fromkeys(run.seed for run in self.runs if run.seed is not None)
        return [seed for seed in planned if all((name, seed) in done for name in names)]

    def of(self, ablation: str) -> list[RunResult]:
        """The runs of an ablation (or bicubic) with the seeds that all have finished, in the order of the plan."""
        seeds = [None, *self.seeds]
        return [run for run in self.runs if run.ablation == ablation and run.seed in seeds]


def write_result(result: RunResult, folder: Path) -> None:
    """Write metrics.json, whole or not at all. Raises MegaSRError when the folder cannot be written."""
    write_text(folder / METRICS_FILE, json.dumps(asdict(result), indent=1))


def read_finished(plan: RunPlan, protocol: Protocol, folder: Path) -> RunResult | None:
    """The result of an earlier run with these settings and this protocol; None when there is none to reuse.

    Raises:
        MegaSRError: metrics.json is there but cannot be understood.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    try:
        result = RunResult(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MegaSRError(f"{path} is damaged ({error}); delete {folder} to run it again") from error
    current = result.fingerprint == plan.fingerprint and result.protocol["fingerprint"] == protocol.fingerprint
    return result if current else None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises MegaSRError when it cannot."""
    write_whole(path, text.encode("utf-8", "surrogateescape"))  # names of files need not be UTF-8


def values(result: RunResult, metric: str) -> dict[str, float]:
    """Image key -> value of the metric."""
    return {row["key"]: row[metric] for row in result.rows}


def tidy(result: StudyResult) -> pd.DataFrame:
    """Every score: run_id, ablation, seed (missing for bicubic), key of the image, metric, value."""
    about = ["run_id", "ablation", "seed"]
    rows = [{**{name: getattr(run, name) for name in about}, **row} for run in result.runs for row in run.rows]
    return pd.DataFrame(rows).astype({"seed": "Int64"}).melt([*about, "key"], var_name="metric")
