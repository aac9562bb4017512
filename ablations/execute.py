"""One run: train (see ablations.train), restore the held-out images, measure, write.

Imports Lightning; the runner imports this file only when a run is not finished yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ablations.plan import Components, RunPlan, build
from ablations.results import RunResult, write_result, write_text
from ablations.tracking import Tracker
from ablations.train import OnStep, load_adapter, read_training, train
from megasr.batch import SRBatch
from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import Evaluator, Row
from megasr.images import read_image, to_uint8, upsample_lq, write_png
from megasr.provenance import git_commit, versions
from megasr.training.module import MegaSRModule
from megasr.training.probes import SiteProbes

_PICTURES = 4  # per run on W&B
Restore = Callable[[SRBatch], torch.Tensor]  # batch -> sr (B, 3, H, W) in [0, 1]
Pictures = dict[str, dict[str, torch.Tensor]]  # key -> {"lq_up", "sr", "hq"}


def execute_baseline(plan: RunPlan, components: Components, evaluator: Evaluator, folder: Path) -> RunResult:
    """Measure bicubic lq_up on the held-out images; also writes their lq and hq, which all runs share."""
    scale_factor, started = plan.config["data"]["init_args"]["scale_factor"], time.perf_counter()
    batches = held_out(plan.config["data"], components, torch.device("cpu"))
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
) -> RunResult | None:
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

    Returns:
        None in all processes but the first: they train with it and measure nothing.

    Raises:
        MegaSRError: the run took other than the planned number of steps, was given another lq than the baseline, or an
            image cannot be measured or written.
    """
    trained_in = trained_in or folder
    if rank_zero_only.rank:  # Lightning started this process for the training
        train(plan, components, trained_in, None, lambda step, loss: None)
        return None
    config = f"# run {plan.run_id}, fingerprint {plan.fingerprint}\n" + yaml.safe_dump(plan.config, sort_keys=False)
    write_text(folder / "config.yaml", config)  # as LightningCLI reads it
    logger, strengths = tracker.open(plan, folder / "wandb"), dict[str, float]()
    try:
        training = read_training(plan, trained_in) or train(plan, components, trained_in, logger, on_step)
        started = time.perf_counter()
        model = build(components, {"model": plan.config["model"]}).model
        load_adapter(model, trained_in)
        device = torch.device(training.device if torch.cuda.is_available() else "cpu")
        restore = _probed(model.to(device).eval(), strengths)
        batches = held_out(plan.config["data"], components, device)
        rows, pictures = _evaluate(batches, restore, evaluator, folder, baseline)
        measured = {"steps": training.steps, "train_s": training.train_s, "device": str(device)}
        measured["tracking"] = logger and f"{logger.experiment.project}/{logger.experiment.id}"
        result = _finish(plan, evaluator, rows, folder, evaluate_s=time.perf_counter() - started, **measured)
    except BaseException:
        tracker.abort(logger)
        raise
    tracker.close(logger, result, pictures, strengths)
    return result


def held_out(section: Mapping[str, Any], components: Components, device: torch.device) -> Iterator[SRBatch]:
    """Batches of the evaluation set of a `data` section on a device, in the same order every time."""
    data = build(components, {"data": section}).data
    data.setup("validate")
    for batch in data.val_dataloader():
        yield data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)


def _probed(model: lightning.LightningModule, strengths: dict[str, float]) -> Restore:
    """Restore, and on the first batch record how strong every branch is at every site (of MegaSRModule only)."""

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
    """Restore and measure the held-out images and write sr; without a baseline, write lq and hq as well."""
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
            if len(pictures) < _PICTURES:
                pictures[key] = {"lq_up": lq_up[i], "sr": sr[i], "hq": hq[i]}
    return rows, pictures


def _check_same_lq(lq: np.ndarray, path: Path) -> None:
    """Only restorations of the same lq are compared; devices may differ by a rounding, not by a level on average."""
    expected = read_image(path)
    if expected.shape != lq.shape or np.abs(expected.astype(int) - lq.astype(int)).mean() >= 1:
        raise MegaSRError(f"evaluated on another lq than {path}; the degradation must not depend on the run")


def _finish(plan: RunPlan, evaluator: Evaluator, rows: list[Row], folder: Path, **measured: Any) -> RunResult:
    """Write metrics.json."""
    protocol = evaluator.protocol
    defaults: dict[str, Any] = {"steps": 0, "train_s": 0.0, "device": "cpu", "tracking": None}
    result = RunResult(
        run_id=plan.run_id,
        study=plan.study,
        ablation=plan.ablation,
        seed=plan.seed,
        fingerprint=plan.fingerprint,
        protocol={"name": protocol.name, "fingerprint": protocol.fingerprint},
        rows=rows,
        summary=evaluator.summary(rows),
        commit=git_commit(),
        versions=versions(),
        **defaults | measured,
    )
    write_result(result, folder)
    return result
