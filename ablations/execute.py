"""One run: train (see ablations.train), restore the held-out images, measure, write.

Imports Lightning; the runner imports this file only when a run is not finished yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from ablations.held_out import HeldOut
from ablations.plan import Components, RunPlan, build
from ablations.results import RunResult, write_result, write_text
from ablations.tracking import Tracker
from ablations.train import OnStep, load_adapter, read_training, train
from megasr.batch import SRBatch
from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.result import Row
from megasr.images import read_image, to_uint8, upsample_lq, write_png
from megasr.provenance import git_commit, versions

SHOWN_IMAGES = 4  # pictures per run on W&B
Restore = Callable[[SRBatch], torch.Tensor]  # batch -> sr (B, 3, H, W) in [0, 1]
Pictures = dict[str, dict[str, torch.Tensor]]  # key -> {"lq_up", "sr", "hq"}


def execute_baseline(plan: RunPlan, components: Components, evaluator: Evaluator, folder: Path) -> RunResult:
    """Measure bicubic lq_up on the held-out photographs; also writes their lq and hq, which all runs share."""
    batches = HeldOut().batches(plan.config["data"], components, torch.device("cpu"))
    scale_factor = plan.config["data"]["init_args"]["scale_factor"]
    started = time.perf_counter()
    rows, _ = _evaluate(batches, lambda batch: upsample_lq(batch["lq"], scale_factor), evaluator, folder)
    return _finish(plan, evaluator, rows, folder, evaluate_s=time.perf_counter() - started)


def execute_run(
    plan: RunPlan,
    components: Components,
    evaluator: Evaluator,
    folder: Path,
    baseline: Path,
    tracker: Tracker,
    on_step: OnStep,
    trained_in: Path | None = None,
    held_out: HeldOut | None = None,
) -> RunResult:
    """Train (unless that is done) and measure one planned run; metrics.json is the last file it writes.

    Args:
        plan: what to run.
        components: classes the config builds.
        evaluator: the protocol.
        folder: the run's folder.
        baseline: folder of the finished bicubic baseline.
        tracker: W&B.
        on_step: called after every optimizer step.
        trained_in: folder of the run that trains for this one; None is its own.
        held_out: shared by the runs of one process.

    Raises:
        MegaSRError: the run took other than the planned number of steps, was given another lq than the baseline, or an
            image cannot be measured or written.
    """
    trained_in = trained_in or folder
    write_text(folder / "config.yaml", _as_yaml(plan))
    logger, strengths = tracker.open(plan, folder / "wandb"), dict[str, float]()
    try:
        training = read_training(plan, trained_in)
        if training is None:
            lightning.seed_everything(plan.seed, workers=True, verbose=False)
            built = build(components, plan.config)
            training = train(plan, built, components, trained_in, logger, on_step)
        started = time.perf_counter()
        model = build(components, {"model": plan.config["model"]}).model
        load_adapter(model, trained_in)
        device = torch.device(training.device if torch.cuda.is_available() else "cpu")
        batches = (held_out or HeldOut()).batches(plan.config["data"], components, device)
        restore = _watched(model.to(device).eval(), strengths)
        rows, pictures = _evaluate(batches, restore, evaluator, folder, baseline)
        result = _finish(
            plan,
            evaluator,
            rows,
            folder,
            steps=training.steps,
            train_s=training.train_s,
            evaluate_s=time.perf_counter() - started,
            device=str(device),
            tracking=None if logger is None else _tracking_id(logger),
        )
    except BaseException:
        tracker.abort(logger)
        raise
    tracker.close(logger, result, pictures, strengths)
    return result


def _watched(model: lightning.LightningModule, strengths: dict[str, float]) -> Restore:
    """Restore, and put into `strengths` how strong every branch is at every site on the first batch.

    A module that is not the project's own is not looked into.
    """
    from megasr.training.module import MegaSRModule
    from megasr.training.probes import SiteProbes

    def restore(batch: SRBatch) -> torch.Tensor:
        if strengths or not isinstance(model, MegaSRModule):
            return model.restore(batch)
        with SiteProbes(model.network) as probes:
            sr = model.restore(batch)
            probes.take()
        strengths.update(probes.means(probes.totals(torch.device("cpu"))))
        return sr

    return restore


@torch.no_grad()
def _evaluate(
    batches: Iterable[SRBatch],
    restore: Restore,
    evaluator: Evaluator,
    folder: Path,
    baseline: Path | None = None,
) -> tuple[list[Row], Pictures]:
    """Restore and measure the held-out photographs and write sr; without a baseline, write lq and hq as well."""
    rows: list[Row] = []
    pictures: Pictures = {}
    for batch in batches:
        sr = restore(batch).float().cpu()
        hq, lq = batch["hq"].float().cpu(), batch["lq"].float().cpu()
        rows += evaluator.rows(sr, hq, batch["keys"])
        lq_up = upsample_lq(lq, hq.shape[-1] // lq.shape[-1])
        for i, key in enumerate(batch["keys"]):
            write_png(to_uint8(sr[i]), folder / "sr" / f"{key}.png")
            if baseline is None:
                write_png(to_uint8(lq[i]), folder / "lq" / f"{key}.png")
                write_png(to_uint8(hq[i]), folder / "hq" / f"{key}.png")
            else:
                _check_same_lq(to_uint8(lq[i]), baseline / "lq" / f"{key}.png")
            if len(pictures) < SHOWN_IMAGES:
                pictures[key] = {"lq_up": lq_up[i], "sr": sr[i], "hq": hq[i]}
    return rows, pictures


def _check_same_lq(lq: np.ndarray, path: Path) -> None:
    """Runs may be compared only when they restored the same lq; devices may differ by a rounding, not by a level."""
    expected = read_image(path)
    if expected.shape != lq.shape or np.abs(expected.astype(int) - lq.astype(int)).mean() >= 1:
        raise MegaSRError(f"evaluated on another lq than {path}; the degradation must not depend on the run")


def _finish(
    plan: RunPlan,
    evaluator: Evaluator,
    rows: list[Row],
    folder: Path,
    *,
    steps: int = 0,
    train_s: float = 0.0,
    evaluate_s: float = 0.0,
    device: str = "cpu",
    tracking: str | None = None,
) -> RunResult:
    protocol = evaluator.protocol
    result = RunResult(
        run_id=plan.run_id,
        study=plan.study,
        ablation=plan.ablation,
        seed=plan.seed,
        fingerprint=plan.fingerprint,
        protocol={"name": protocol.name, "fingerprint": protocol.fingerprint},
        rows=rows,
        summary=evaluator.summary(rows),
        steps=steps,
        train_s=train_s,
        evaluate_s=evaluate_s,
        device=device,
        commit=git_commit(),
        versions=versions(),
        tracking=tracking,
    )
    write_result(result, folder)
    return result


def _as_yaml(plan: RunPlan) -> str:
    """The run's config as LightningCLI reads it."""
    import yaml

    return f"# run {plan.run_id}, fingerprint {plan.fingerprint}\n" + yaml.safe_dump(plan.config, sort_keys=False)


def _tracking_id(logger: Any) -> str:
    run = logger.experiment
    return f"{run.project}/{run.id}"
