"""What one run leaves behind, and how it is read back.

`<run_id>/` holds config.yaml, and of trained runs adapter.ckpt and training.json. Of the recipe's evaluation images it
holds sr/<key>.png, restored.json and metrics.json; those of another evaluation set lie in sets/<identity>/. Each JSON
is written whole, when what it speaks of is complete: images without restored.json are restored again, and numbers that
metrics.json does not have under a protocol are measured again, of the same images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ablations.evaluation import EvaluationSet, study_metrics, study_name
from ablations.plan import BICUBIC, RunPlan
from ablations.registry import Study
from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Row
from megasr.evaluation.protocol import MetricSpec
from megasr.files import write_whole

CHECKPOINT, TRAINING_FILE = "adapter.ckpt", "training.json"
RESTORED_FILE, METRICS_FILE = "restored.json", "metrics.json"
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        fingerprint: RunPlan.training.
        steps: optimizer steps.
        train_s: seconds, those before a resume included.
        device: what it ran on.
        losses: [step, loss] every trainer.log_every_n_steps.
        weights: 12 hexadecimal digits of the checkpoint's sha256; "" where it is a folder.
    """

    fingerprint: str
    steps: int
    train_s: float
    device: str
    losses: list[list[float]]
    weights: str = ""


@dataclass(frozen=True)
class Restored:
    """The images of one evaluation set, restored by one run.

    Attributes:
        fingerprint: of the plan: settings, sampler and frozen weights.
        weights: Training.weights of what restored them; "" for a baseline.
        keys: names of the images, in the order of the set.
        steps, train_s: of the training.
        device: what restored them.
        restore_s: seconds.
    """

    fingerprint: str
    weights: str
    keys: list[str]
    steps: int
    train_s: float
    device: str
    restore_s: float


@dataclass(frozen=True)
class RunResult:
    """A finished run: its numbers on one evaluation set, or on all of them (see `merge_results`).

    Attributes:
        run_id: name of its folder.
        study, ablation, seed: what it is; a baseline has no seed.
        fingerprint: of the plan (settings and prior); code is not part of it, see `commit`.
        protocol: {"name", "fingerprint"} of the protocol, or of several sets {name of the set: these}.
        rows: one {"key", metric: value} per image.
        summary: metric -> mean over the images.
        steps: training steps taken.
        train_s, evaluate_s: seconds of training, and of restoring and measuring.
        device: what restored the images.
        commit: git commit of the code, with "+changes" when the tree was not clean; None outside a repository.
        versions: package -> version.
        tracking: path or folder of the W&B run, None when there is none.
        weights: see Restored.
        measured_on: device of the metrics; "" in results of before it was written down.
    """

    run_id: str
    study: str
    ablation: str
    seed: int | None
    fingerprint: str
    protocol: dict[str, Any]
    rows: list[Row]
    summary: dict[str, float]
    steps: int
    train_s: float
    evaluate_s: float
    device: str
    commit: str | None
    versions: dict[str, str]
    tracking: str | None
    weights: str = ""
    measured_on: str = ""


@dataclass(frozen=True)
class StudyResult:
    """All runs of a study.

    Attributes:
        study: the study; its metrics have their names in the study.
        sets: what was measured, and how.
        runs: runs in the order of the plan, baselines first, with the numbers of the sets that are finished.
        output: folder that holds the run folders.
        group: id of study and recipe; W&B groups the runs by it.
        reused: ids of runs that were finished before this call.
        failed: run id -> reason, in one line, of the runs that failed in this call.
        reworded: what the study file says in other words than when the study was begun, a line each.
    """

    study: Study
    sets: tuple[EvaluationSet, ...]
    runs: tuple[RunResult, ...]
    output: Path
    group: str
    reused: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    reworded: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[MetricSpec]:
        """What can be compared, in the order of the sets: metrics that one seed has of every ablation."""
        return [metric for name, (_, metric) in study_metrics(self.sets).items() if self.seeds_of(name)]

    @property
    def primary(self) -> MetricSpec:
        """The metric that decides."""
        return study_metrics(self.sets)[self.study.primary_metric][1]

    @property
    def primary_set(self) -> EvaluationSet:
        """The set that it is measured on."""
        return study_metrics(self.sets)[self.study.primary_metric][0]

    @property
    def seeds(self) -> list[int]:
        """Seeds that the reference and every ablation have finished in the primary metric: what can be paired."""
        return self.seeds_of(self.study.primary_metric)

    @property
    def baselines(self) -> list[str]:
        """Names of the baselines that are measured in every metric that is compared, bicubic first."""
        names = {metric.name for metric in self.metrics}
        return [run.ablation for run in self.runs if run.seed is None and names <= run.summary.keys()]

    def seeds_of(self, metric: str) -> list[int]:
        """As `seeds`, in another metric; none where bicubic is not measured."""
        names = [self.study.reference.name, *(ablation.name for ablation in self.study.ablations)]
        done = {(run.ablation, run.seed) for run in self.runs if metric in run.summary}
        if (BICUBIC, None) not in done:
            return []
        planned = dict.fromkeys(run.seed for run in self.runs if run.seed is not None)
        return [seed for seed in planned if all((name, seed) in done for name in names)]

    def of(self, ablation: str, metric: str | None = None) -> list[RunResult]:
        """The runs of an ablation (or baseline) with the seeds that all have finished, in the order of the plan.

        Args:
            ablation: its name.
            metric: in which they are finished; None is the primary one.
        """
        metric = self.study.primary_metric if metric is None else metric
        seeds = [None, *self.seeds_of(metric)]
        return [run for run in self.runs if run.ablation == ablation and run.seed in seeds and metric in run.summary]

    @property
    def missing(self) -> list[tuple[str, str]]:
        """(run id, set) of runs that have numbers of some sets, and not of this one."""
        firsts = {one.name: study_name(self.sets, one, one.metrics[0].name) for one in self.sets}
        return [(run.run_id, name) for run in self.runs for name, metric in firsts.items() if metric not in run.summary]


def merge_results(sets: Sequence[EvaluationSet], results: Mapping[str, RunResult]) -> RunResult | None:
    """The results of a run on several sets as one, with the metrics' names in the study.

    Args:
        sets: all of the study.
        results: name of a set -> result; sets that are not finished are left out.

    Returns:
        None where no set is finished.
    """
    done = [(one, results[one.name]) for one in sets if one.name in results]
    if not done:
        return None
    if len(sets) == 1:
        return done[0][1]
    rows: list[Row] = []
    summary: dict[str, float] = {}
    for one, result in done:
        rows += [{study_name(sets, one, k) if k != "key" else k: v for k, v in row.items()} for row in result.rows]
        summary |= {study_name(sets, one, name): mean for name, mean in result.summary.items()}
    protocols = {one.name: result.protocol for one, result in done}
    seconds = sum(result.evaluate_s for _, result in done)
    return replace(done[0][1], protocol=protocols, rows=rows, summary=summary, evaluate_s=seconds)


def read_training(plan: RunPlan, folder: Path) -> Training | None:
    """The finished training of a plan in a folder; None when there is none.

    Raises:
        MegaSRError: training.json cannot be understood.
    """
    path = folder / TRAINING_FILE
    if not (path.is_file() and (folder / CHECKPOINT).exists()):
        return None
    training = _read(path, Training, folder)
    return training if training.fingerprint == plan.training else None


def read_losses(folder: Path) -> list[list[float]]:
    """[step, loss] of the training in a run's folder; empty when the run shares the training of another one."""
    path = folder / TRAINING_FILE
    return list(json.loads(path.read_text())["losses"]) if path.is_file() else []


def write_restored(restored: Restored, folder: Path) -> None:
    """Write restored.json, whole or not at all. Raises MegaSRError when the folder cannot be written."""
    write_text(folder / RESTORED_FILE, json.dumps(asdict(restored), indent=1))


def read_restored(plan: RunPlan, folder: Path, weights: str = "") -> Restored | None:
    """What a run has restored of a set; None when it is incomplete, or was restored by other weights.

    Args:
        plan: the run.
        folder: of the set.
        weights: Training.weights; "" accepts any, for trainings whose checkpoint is gone.

    Raises:
        MegaSRError: a file cannot be understood.
    """
    if (folder / RESTORED_FILE).is_file():
        restored = _read(folder / RESTORED_FILE, Restored, folder)
        known = (restored.fingerprint, restored.weights if weights else "")
        return restored if known == (plan.fingerprint, weights) else None
    for one in _read_results(folder):  # studies of before restored.json
        if one.fingerprint == plan.fingerprint:
            keys = [row["key"] for row in one.rows]
            return Restored(plan.fingerprint, one.weights, keys, one.steps, one.train_s, one.device, one.evaluate_s)
    return None


def write_result(result: RunResult, folder: Path) -> None:
    """Add to metrics.json, or replace there the result of this protocol.

    Raises:
        MegaSRError: the folder cannot be written, or metrics.json cannot be understood.
    """
    protocol = result.protocol["fingerprint"]
    others = [one for one in _read_results(folder) if one.protocol["fingerprint"] != protocol]
    kept = [one for one in others if (one.fingerprint, one.weights) == (result.fingerprint, result.weights)]
    records = {one.protocol["fingerprint"]: asdict(one) for one in (*kept, result)}
    write_text(folder / METRICS_FILE, json.dumps(records, indent=1))


def read_finished(plan: RunPlan, one: EvaluationSet, folder: Path, weights: str = "") -> RunResult | None:
    """The result of a run on a set with these settings, weights and protocol; None when there is none to reuse.

    Args:
        plan: the run.
        one: the set.
        folder: of the run.
        weights: see read_restored.

    Raises:
        MegaSRError: metrics.json is there but cannot be understood.
    """
    for result in _read_results(one.folder(folder)):
        current = result.fingerprint == plan.fingerprint and result.weights in ("", weights or result.weights)
        if current and result.protocol["fingerprint"] == one.protocol.fingerprint:
            return result
    return None


def _read_results(folder: Path) -> list[RunResult]:
    """What metrics.json holds: a result by protocol, or (studies of before) the one result."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        return [RunResult(**one) for one in ([content] if "run_id" in content else content.values())]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MegaSRError(f"{path} is damaged ({error}); delete {folder} to run it again") from error


def _read(path: Path, record: type[_Record], folder: Path) -> _Record:
    try:
        return record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise MegaSRError(f"{path} is damaged ({error}); delete {folder} to run it again") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises MegaSRError when it cannot."""
    write_whole(path, text.encode("utf-8", "surrogateescape"))  # names of files need not be UTF-8


def values(result: RunResult, metric: str) -> dict[str, float]:
    """Image key -> value of the metric, of the images that it was taken of."""
    return {row["key"]: row[metric] for row in result.rows if metric in row}


def tidy(result: StudyResult) -> pd.DataFrame:
    """Every score: run_id, ablation, seed (missing for baselines), key of the image, metric, value."""
    about = ["run_id", "ablation", "seed"]
    rows = [{**{name: getattr(run, name) for name in about}, **row} for run in result.runs for row in run.rows]
    table = pd.DataFrame(rows).astype({"seed": "Int64"}).melt([*about, "key"], var_name="metric")
    return table.dropna(subset="value", ignore_index=True)  # a row has the metrics of its own set alone
