"""Weights & Biases: one W&B run per study run and one for the report. Never asks, never stops a study."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ablations.plan import RunPlan
from ablations.results import RunResult
from megasr.images import to_uint8
from megasr.tracking import WandbRuns, first_line


class Tracker:
    """Opens and fills the W&B runs of one study.

    Args:
        group: the study's id; W&B groups its runs by it.
        tell: prints one line for the user.
    """

    def __init__(self, group: str, tell: Callable[[str], None]) -> None:
        self._group = group
        self._tell = tell
        self._runs = WandbRuns(tell)

    def open(self, plan: RunPlan, folder: Path) -> Any | None:
        """A WandbLogger whose run has started, or None when W&B is disabled or cannot be used (said in one line)."""
        about = {"run_id": plan.run_id, "fingerprint": plan.fingerprint, "seed": plan.seed}
        return self._open(plan.run_id, plan.ablation, plan.guidance, {**plan.config, **about}, folder)

    def _open(
        self, name: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], folder: Path
    ) -> Any | None:
        return self._runs.open(
            folder, name=name, group=self._group, job_type=job_type, tags=list(tags), config=dict(config)
        )

    def close(self, logger: Any | None, result: RunResult, images: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Log means, the per-image table and pictures, and end the run.

        Args:
            logger: what `open` returned.
            result: the finished run.
            images: key -> {"lq_up", "sr", "hq"}, each (3, H, W) in [0, 1]: the pictures to show.
        """
        if logger is None:
            return
        import wandb

        metrics = list(result.summary)
        table = wandb.Table(["key", *metrics], [[row["key"], *(row[name] for name in metrics)] for row in result.rows])
        try:
            run = logger.experiment
            for key, views in images.items():
                pictures = [wandb.Image(to_uint8(image), caption=f"{name} {key}") for name, image in views.items()]
                run.log({f"images/{key}": pictures}, commit=False)
            run.log({"per_image": table, **{f"mean/{name}": mean for name, mean in result.summary.items()}})
            run.summary.update({"run_id": result.run_id, "protocol": result.protocol, "commit": result.commit})
            run.finish()
        except Exception as error:
            self._tell(f"W&B lost the end of {result.run_id} ({first_line(error)}); its results are on disk")

    def report(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        sheet: Path,
        results: Path,
        config: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """One more W&B run of the group, with the study's answer.

        Args:
            columns: of the final table.
            rows: of the final table; None where there is no value.
            sheet: the contact sheet.
            results: results.json; a copy becomes a file of the W&B run.
            config: what names the answer: study, primary metric, protocol.
            folder: for W&B's files.
        """
        logger = self._open(f"{self._group}-report", "report", (), config, folder)
        if logger is None:
            return
        import wandb

        try:
            run = logger.experiment
            table = wandb.Table(list(columns), [list(row) for row in rows], allow_mixed_types=True)
            run.log({"results": table, "contact_sheet": wandb.Image(str(sheet))})
            copied = shutil.copy(results, run.dir)  # W&B alone would link to the file, which the next report replaces
            run.save(copied, base_path=run.dir, policy="now")
            run.finish()
        except Exception as error:
            self._tell(f"W&B lost the report ({first_line(error)}); it is on disk")

    def abort(self, logger: Any | None) -> None:
        """End the W&B run of a run that failed."""
        if logger is not None:
            with contextlib.suppress(Exception):  # the run's own error is the one to be seen
                logger.experiment.finish(exit_code=1)
