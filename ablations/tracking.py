"""Weights & Biases: one W&B run per study run and one for the report. Never asks, never stops a study.

The mode is WANDB_MODE when it is set; else online for who is logged in, else offline (the files lie in the run's
folder and `wandb sync` sends them later).
"""

from __future__ import annotations

import contextlib
import netrc
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from ablations.plan import RunPlan
from ablations.results import RunResult
from megasr.errors import UsageError
from megasr.images import to_uint8

_MODES = ("online", "offline", "disabled")
_CONNECT_S = 20
PROJECT = "megasr"


def wandb_mode() -> str:
    """online, offline or disabled. Raises UsageError when WANDB_MODE is something else."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode and mode not in _MODES:
        raise UsageError(f"WANDB_MODE is {mode!r}; known: {', '.join(_MODES)}")
    return mode or ("online" if _logged_in() else "offline")


def _logged_in() -> bool:
    """An API key is in the environment or in the netrc file, where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """Opens and fills the W&B runs of one study.

    Args:
        group: the study's id; W&B groups its runs by it.
        tell: prints one line for the user.
    """

    def __init__(self, group: str, tell: Callable[[str], None]) -> None:
        self._group = group
        self._tell = tell
        self._mode = wandb_mode()

    def open(self, plan: RunPlan, folder: Path) -> Any | None:
        """A WandbLogger whose run has started, or None when W&B is disabled or cannot be used (said in one line)."""
        about = {"run_id": plan.run_id, "fingerprint": plan.fingerprint, "seed": plan.seed}
        return self._open(plan.run_id, plan.ablation, plan.guidance, {**plan.config, **about}, folder)

    def _open(
        self, name: str, job_type: str, tags: Sequence[str], config: Mapping[str, Any], folder: Path
    ) -> Any | None:
        def start(offline: bool) -> Any:
            return self._start(
                folder, offline, name=name, group=self._group, job_type=job_type, tags=list(tags), config=dict(config)
            )

        if self._mode == "online":
            try:
                return start(offline=False)
            except Exception as error:  # W&B raises its own, requests' and the operating system's errors
                self._mode = "offline"
                self._tell(f"W&B cannot be used online ({_first_line(error)}); logging offline into {folder.parent}")
        if self._mode == "offline":
            try:
                return start(offline=True)
            except Exception as error:
                self._mode = "disabled"
                self._tell(f"W&B cannot log ({_first_line(error)}); the study goes on without it")
        return None

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
            self._tell(f"W&B lost the end of {result.run_id} ({_first_line(error)}); its results are on disk")

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
            self._tell(f"W&B lost the report ({_first_line(error)}); it is on disk")

    def abort(self, logger: Any | None) -> None:
        """End the W&B run of a run that failed."""
        if logger is not None:
            with contextlib.suppress(Exception):  # the run's own error is the one to be seen
                logger.experiment.finish(exit_code=1)

    def _start(self, folder: Path, offline: bool, **arguments: Any) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        folder.mkdir(parents=True, exist_ok=True)
        mode = "offline" if offline else "online"  # not as the logger's `offline`, which would change WANDB_MODE
        settings = wandb.Settings(mode=mode, silent=True, console="off", init_timeout=_CONNECT_S)
        wandb.setup(settings)  # silent from here on; the logger's own settings come too late for W&B's first warnings
        logger = WandbLogger(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            save_dir=folder,
            settings=settings,
            **arguments,
        )
        logger.experiment  # noqa: B018  starts the run, so that a failure shows here
        return logger


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
