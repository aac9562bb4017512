"""Weights & Biases: one W&B run per study run, with the names of `megasr fit` and `test`, and one for the report."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ablations.page import StudyPage
from ablations.plan import RunPlan
from ablations.record import RECIPE_FILE, STUDY_FILE
from ablations.results import CHECKPOINT, RunResult
from ablations.wandb_report import save_report, study_media, study_summary
from megasr.files import write_whole
from megasr.guidance.registry import guidance_switches
from megasr.images import to_uint8
from megasr.tracking import WandbRuns, first_line, log_artifact, logs_model, staged_in
from megasr.training.monitor import heat_map

_USE = "share of a site's features that each branch makes (one scale per column)"
_LONGEST_TAG = 64  # W&B refuses longer ones
_KEPT = (RECIPE_FILE, STUDY_FILE, "scores.csv", "results.csv", "results.json", "index.html")  # of a study
_AGENT_FILE = "wandb_agent.json"


def join_sweep(host: Path, others: Iterable[Path]) -> None:
    """Where an agent of a W&B sweep has started this process: let runs be in its sweep, and one the agent's own.

    The agent's variables are removed, since the process logs several runs. A run that is tried again goes on as the W&B
    run that it began as.

    Args:
        host: folder of the run that is the agent's own.
        others: folders of the runs that share its training.
    """
    run_id, sweep_id = (os.environ.pop(f"WANDB_{name}", "") for name in ("RUN_ID", "SWEEP_ID"))
    os.environ.pop("WANDB_SWEEP_PARAM_PATH", None)
    if not run_id or not sweep_id:
        return
    for folder in (host, *others):
        agent = {"sweep_id": sweep_id} | ({"id": run_id} if folder == host else {})
        if not (folder / _AGENT_FILE).exists():
            write_whole(folder / _AGENT_FILE, json.dumps(agent).encode())


class Tracker:
    """Opens and fills the W&B runs of one study.

    Args:
        group: the study's id; W&B groups its runs by it.
        tell: prints one line for the user.

    Raises:
        UsageError: W&B's variables say what is not known.
    """

    def __init__(self, group: str, tell: Callable[[str], None]) -> None:
        self._group = group
        self._tell = tell
        self._runs = WandbRuns(tell)
        self._logs_model = logs_model()

    def open(self, plan: RunPlan, folder: Path) -> Any | None:
        """A WandbLogger whose run has started, or None when W&B is disabled or cannot be used (said in one line).

        Its config has the study's axes as columns: the ablation, the seed, and a switch per guidance type.

        Args:
            plan: the run.
            folder: for W&B's files, in the run's.
        """
        about = {"study": plan.study, "run_id": plan.run_id, "fingerprint": plan.fingerprint}
        axes = {"ablation": plan.ablation, "seed": plan.seed, "guidance": guidance_switches(plan.config["model"])}
        tags = list(dict.fromkeys([plan.study, plan.ablation, *plan.guidance]))
        name, config = f"{plan.ablation} seed {plan.seed}", plan.config | about | axes
        record = folder.parent / _AGENT_FILE
        agent = {"id": plan.run_id, **(json.loads(record.read_text()) if record.is_file() else {})}
        return self._open(name=name, job_type=plan.ablation, tags=tags, config=config, folder=folder, **agent)

    def _open(
        self,
        id: str,
        name: str,
        job_type: str,
        tags: Sequence[str],
        config: Mapping[str, Any],
        folder: Path,
        sweep_id: str | None = None,
    ) -> Any | None:
        """A run that is tried again, or a study that is reported again, goes on under the same id."""
        return self._runs.open(
            folder,
            sweep_id=sweep_id,
            id=re.sub(r"[^\w.+-]", "-", id)[-128:],  # W&B's ids may not hold other characters, nor more
            resume="allow",
            name=name,
            group=self._group,
            job_type=job_type,
            tags=[tag[:_LONGEST_TAG] for tag in tags],
            config=dict(config),
        )

    def close(
        self,
        logger: Any | None,
        result: RunResult | None,
        images: Mapping[str, Mapping[str, torch.Tensor]],
        strengths: Mapping[str, float],
    ) -> None:
        """Log what `megasr test` logs, pictures and the strength of every branch, and end the run.

        Args:
            logger: what `open` returned.
            result: the finished run; None (no set could be measured) aborts the W&B run.
            images: key -> {"lq_up", "sr", "hq"}, each (3, H, W) in [0, 1]: the pictures to show.
            strengths: of the branches at every site, see megasr.training.monitor.heat_map.
        """
        if result is None:
            self.abort(logger)
        if logger is None or result is None:
            return
        import wandb

        metrics = list(result.summary)
        table = wandb.Table(["key", *metrics], [[row["key"], *map(row.get, metrics)] for row in result.rows])
        folder = Path(logger.save_dir)
        try:
            with staged_in(folder):
                run = logger.experiment
                for key, views in images.items():
                    pictures = [wandb.Image(to_uint8(image), caption=f"{name} {key}") for name, image in views.items()]
                    run.log({f"test/pictures/{key}": pictures}, commit=False)
                if strengths:
                    picture = heat_map(strengths, _USE)
                    run.log({"test/guidance_use": wandb.Image(picture, caption=_USE), **strengths}, commit=False)
                run.log({"test/images": table, **{f"test/{name}": mean for name, mean in result.summary.items()}})
                run.summary.update({"run_id": result.run_id, "protocol": result.protocol, "commit": result.commit})
                if self._logs_model and (folder.parent / CHECKPOINT).is_file():  # else another run has trained for it
                    files = [folder.parent / name for name in (CHECKPOINT, "config.yaml")]
                    log_artifact(run, f"adapter-{result.run_id}", "model", files)
                run.finish()
        except Exception as error:
            self._tell(f"W&B lost the end of {result.run_id} ({first_line(error)}); its results are on disk")

    def report(self, page: StudyPage, output: Path, config: Mapping[str, Any]) -> None:
        """One more W&B run of the group, with the study's answer; the same one when the study is reported again.

        On-line there is a W&B Report as well.

        Args:
            page: the answer.
            output: folder of the study; its recipe, tables and page become an artifact, from which the study can be run
                again.
            config: what names the answer: study, primary metric, protocol.
        """
        logger = self._open(f"{self._group}-study", page.title, "study", [page.title], config, output / "wandb")
        if logger is None:
            return
        try:
            with staged_in(output / "wandb"):
                run = logger.experiment
                run.log(study_media(page, output / "contact_sheet.png", output / "index.html"))
                run.summary.update(study_summary(page))
                files = (output / name for name in _KEPT)
                log_artifact(run, self._group, "study", [path for path in files if path.is_file()])
                entity, project = run.entity, run.project
                run.finish()
        except Exception as error:
            self._tell(f"W&B lost the report ({first_line(error)}); it is on disk")
            return
        if self._runs.mode == "online":
            self._write(page, entity, project, output)

    def _write(self, page: StudyPage, entity: str, project: str, output: Path) -> None:
        try:
            self._tell(f"W&B Report: {save_report(page, self._group, entity, project, output)}")
        except Exception as error:
            self._tell(f"W&B took no Report ({first_line(error)}); its run of the study holds the same")

    def abort(self, logger: Any | None) -> None:
        """End the W&B run of a run that failed."""
        if logger is not None:
            with contextlib.suppress(Exception):  # the run's own error is the one to be seen
                logger.experiment.finish(exit_code=1)
