"""One run: train (see ablations.train), restore the images of the evaluation sets, measure, write.

Imports Lightning; the runner imports this file only when a run is not finished yet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ablations.evaluation import EvaluationSet, check_images, open_set
from ablations.plan import BICUBIC, Components, RunPlan, build
from ablations.results import (
    METRICS_FILE,
    RESTORED_FILE,
    Restored,
    RunResult,
    Training,
    merge_results,
    read_restored,
    read_training,
    write_restored,
    write_result,
    write_text,
)
from ablations.tracking import Tracker
from ablations.train import OnStep, load_adapter, train
from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.folders import check_sizes, load_pair
from megasr.evaluation.pairing import Pair
from megasr.guidance.registry import get_guidance
from megasr.images import read_image, to_uint8, upsample_lq, write_png
from megasr.inference.baselines import load_baseline
from megasr.provenance import git_commit, versions
from megasr.training.module import MegaSRModule
from megasr.training.probes import SiteProbes

_PICTURES = 4  # per run on W&B
# batch -> sr (B, 3, H, W) in [0, 1], and the guidance maps that were shown
Restore = Callable[[SRBatch], tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
Pictures = dict[str, dict[str, torch.Tensor]]  # key -> {"lq_up", "sr", "hq" where there is one}


class Evaluators:
    """The evaluators of a study's sets, on the GPU where there is one; each is made once, when it is asked for.

    Args:
        sets: all sets of the study.
        weights_dir: where weights of metrics are looked for first.
    """

    def __init__(self, sets: Sequence[EvaluationSet], weights_dir: Path | None = None) -> None:
        self.sets, self._weights_dir = tuple(sets), weights_dir
        self._made: dict[str, Evaluator] = {}

    def of(self, one: EvaluationSet) -> Evaluator:
        """The evaluator of a set. Raises MegaSRError when weights are missing."""
        if one.name not in self._made:
            names = [metric.name for metric in one.metrics]
            device = "cuda" if torch.cuda.is_available() else "cpu"  # a job on the CPU is shown no GPU
            self._made[one.name] = Evaluator(
                one.protocol, metrics=names, device=device, weights_dir=self._weights_dir, has_hq=one.has_hq
            )
        return self._made[one.name]


class Restorer(NamedTuple):
    """What restores the images of a run: on which device, how, and whose training it is (None of a baseline)."""

    device: torch.device
    restore: Restore
    training: Training | None = None


def execute_baseline(
    plan: RunPlan,
    components: Components,
    todo: Sequence[EvaluationSet],
    evaluators: Evaluators,
    folder: Path,
    baseline: Path,
) -> None:
    """Restore and measure the sets in `todo` by a baseline; bicubic also writes lq and hq, which all runs share.

    Args:
        plan, components, todo, evaluators, folder, baseline: see `execute_run`; bicubic's folder is the baseline's.

    Raises:
        UsageError, MegaSRError: a set cannot be read or measured, or the baseline cannot restore it.
    """
    name = plan.config.get("baseline", BICUBIC)
    device = torch.device("cuda" if name != BICUBIC and torch.cuda.is_available() else "cpu")
    for one in todo:
        if (restored := read_restored(plan, one.folder(folder))) is None:
            data = open_set(one, plan.config["data"], components)
            restore = load_baseline(name, data.scale_factor, device)[0]
            restorer = Restorer(device, partial(_of_lq, restore))
            restored = restore_set(plan, one, data, restorer, folder, None if folder == baseline else baseline)[0]
        measure_set(plan, one, evaluators.of(one), restored, folder, baseline)


def _of_lq(
    restore: Callable[[torch.Tensor], torch.Tensor], batch: SRBatch
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    return restore(batch["lq"]), {}


def execute_run(
    plan: RunPlan,
    components: Components,
    todo: Sequence[EvaluationSet],
    evaluators: Evaluators,
    folder: Path,
    baseline: Path,
    tracker: Tracker,
    on_step: OnStep,
    trained_in: Path | None = None,
) -> dict[str, RunResult] | None:
    """Train and restore as far as that is not done, and measure a planned run set by set.

    A set that fails does not cost the others: its error is raised when they are finished.

    Args:
        plan: what to run.
        components: classes the config builds.
        todo: the sets that are not measured.
        evaluators: of all sets.
        folder: the run's folder.
        baseline: folder of the finished bicubic baseline.
        tracker: W&B.
        on_step: called after every optimizer step.
        trained_in: folder of the run that trains for this one; None is its own.

    Returns:
        Name of a set -> result. None in all processes but the first: they train with it and measure nothing.

    Raises:
        MegaSRError: the run took other than the planned number of steps, was given another lq or other images than the
            baseline, or an image cannot be measured or written.
    """
    trained_in = trained_in or folder
    if rank_zero_only.rank:  # Lightning started this process for the training
        train(plan, components, trained_in, None, lambda step, loss: None)
        return None
    logger, strengths, pictures = tracker.open(plan, folder / "wandb"), dict[str, float](), Pictures()
    results, failed = dict[str, RunResult](), dict[str, Exception]()
    try:
        where = logger and f"{logger.experiment.project}/{logger.experiment.id}"
        done, restorer = _prepare(plan, components, todo, folder, trained_in, logger, on_step, strengths)
        for one in todo:
            try:
                if (restored := done[one.identity]) is None:
                    images = open_set(one, plan.config["data"], components)
                    restored, seen = restore_set(plan, one, images, cast(Restorer, restorer), folder, baseline)
                    done[one.identity] = restored  # another set may be the same images under another protocol
                    pictures = pictures or seen
                results[one.name] = measure_set(plan, one, evaluators.of(one), restored, folder, baseline, where)
            except UsageError:
                raise
            except Exception as error:
                failed[one.name] = error
    except BaseException:
        tracker.abort(logger)
        raise
    tracker.close(logger, merge_results(evaluators.sets, results), pictures, strengths)
    _raise(failed, len(evaluators.sets))
    return results


def _prepare(
    plan: RunPlan,
    components: Components,
    todo: Sequence[EvaluationSet],
    folder: Path,
    trained_in: Path,
    logger: Any,
    on_step: OnStep,
    strengths: dict[str, float],
) -> tuple[dict[str, Restored | None], Restorer | None]:
    """What is restored already, by the sets' identity, and what restores the others: trained now if it is not yet."""
    config = f"# run {plan.run_id}, fingerprint {plan.fingerprint}\n" + yaml.safe_dump(plan.config, sort_keys=False)
    write_text(folder / "config.yaml", config)  # as LightningCLI reads it

    def restored(weights: str) -> dict[str, Restored | None]:
        return {one.identity: read_restored(plan, one.folder(folder), weights) for one in todo}

    training = read_training(plan, trained_in)
    done = restored(training.weights if training else "")
    if None not in done.values():
        return done, None
    if training is None:
        training = train(plan, components, trained_in, logger, on_step)
        done = restored(training.weights)
    return done, _restorer(plan, components, trained_in, training, strengths)


def _raise(failed: Mapping[str, Exception], sets: int) -> None:
    """Raise what the sets raised; what was not foreseen stays an error that is worth another try."""
    if failed and sets == 1:
        raise next(iter(failed.values()))
    if failed:
        text = "; ".join(f"evaluation set {name}: {error}" for name, error in failed.items())
        foreseen = all(isinstance(error, MegaSRError) for error in failed.values())
        raise (MegaSRError if foreseen else RuntimeError)(text) from next(iter(failed.values()))


def _restorer(
    plan: RunPlan, components: Components, trained_in: Path, training: Training, strengths: dict[str, float]
) -> Restorer:
    """The trained adapter of a run on the device that trained it; fills `strengths` (see _probed)."""
    model = build(components, {"model": plan.config["model"]}).model
    load_adapter(model, trained_in)
    device = torch.device(training.device if torch.cuda.is_available() else "cpu")
    return Restorer(device, _probed(model.to(device).eval(), strengths), training)


def batches_of(data: Any, device: torch.device) -> Iterator[SRBatch]:
    """Batches of the evaluation images of a data module on a device, in the same order every time."""
    for batch in data.val_dataloader():
        yield data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)


def _probed(model: lightning.LightningModule, strengths: dict[str, float]) -> Restore:
    """Restore, and on the first batch record how strong every branch is at every site (of MegaSRModule only)."""

    def restore(batch: SRBatch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        if not isinstance(model, MegaSRModule):
            return model.restore(batch), {}
        if strengths:
            return model.restore_and_show(batch)
        with SiteProbes(model.network) as probes:
            restored = model.restore_and_show(batch)
            probes.take()
        strengths.update(probes.means(probes.totals(torch.device("cpu"))))
        return restored

    return restore


@torch.no_grad()
def restore_set(
    plan: RunPlan, one: EvaluationSet, data: Any, restorer: Restorer, folder: Path, baseline: Path | None
) -> tuple[Restored, Pictures]:
    """Restore the images of a set and write sr/<key>.png, and restored.json when all are there.

    A run that shows one guidance map writes maps/<key>.png too: what that type sees.

    Args:
        plan: the run.
        one: the set.
        data: its data module.
        restorer: what restores.
        folder: of the run.
        baseline: folder of bicubic's run, whose lq it must be; None writes lq and hq.

    Raises:
        MegaSRError: it is given another lq or other images than bicubic, or an image cannot be written.
    """
    began, keys, pictures = time.perf_counter(), list[str](), Pictures()
    place, truth = one.folder(folder), None if baseline is None else one.folder(baseline)
    for stale in (RESTORED_FILE, METRICS_FILE):  # what is left of other weights
        (place / stale).unlink(missing_ok=True)
    for batch in batches_of(data, restorer.device):
        restored_batch, maps = restorer.restore(batch)
        sr, lq = restored_batch.float().cpu(), batch["lq"].float().cpu()
        views = {"sr": sr} | ({"hq": batch["hq"].float().cpu()} if one.has_hq else {})
        lq_up = upsample_lq(lq, sr.shape[-1] // lq.shape[-1])
        for i, key in enumerate(batch["keys"]):
            for name, images in ({"lq": lq} | views if truth is None else {"sr": sr}).items():
                write_png(to_uint8(images[i]), place / name / f"{key}.png")
            for name, images in maps.items() if len(maps) == 1 else ():
                write_png(to_uint8(get_guidance(name).render(images[i].float().cpu())), place / "maps" / f"{key}.png")
            if truth is not None:
                _check_same_lq(to_uint8(lq[i]), truth / "lq" / f"{key}.png")
            if len(pictures) < _PICTURES:
                pictures[key] = {"lq_up": lq_up[i]} | {name: images[i] for name, images in views.items()}
        keys += batch["keys"]
    if truth is not None and (truth / RESTORED_FILE).is_file():
        check_images(one, keys, json.loads((truth / RESTORED_FILE).read_text())["keys"])
    training, seconds = restorer.training, time.perf_counter() - began
    weights, steps, train_s = (training.weights, training.steps, training.train_s) if training else ("", 0, 0.0)
    restored = Restored(plan.fingerprint, weights, keys, steps, train_s, str(restorer.device), seconds)
    write_restored(restored, place)
    return restored, pictures


def _check_same_lq(lq: np.ndarray, path: Path) -> None:
    """Only restorations of the same lq are compared; devices may differ by a rounding, not by a level on average."""
    expected = read_image(path)
    if expected.shape != lq.shape or np.abs(expected.astype(int) - lq.astype(int)).mean() >= 1:
        raise MegaSRError(f"evaluated on another lq than {path}; the degradation must not depend on the run")


def measure_set(
    plan: RunPlan,
    one: EvaluationSet,
    evaluator: Evaluator,
    restored: Restored,
    folder: Path,
    baseline: Path,
    tracking: str | None = None,
) -> RunResult:
    """Measure the images that a run has restored of a set, and write its result.

    Args:
        plan: the run.
        one: the set.
        evaluator: of its protocol.
        restored: the images.
        folder: of the run.
        baseline: folder of bicubic's run, which holds hq.
        tracking: name of the W&B run.

    Raises:
        UsageError: an image is not of the size that the protocol measures.
        MegaSRError: an image cannot be read or measured.
    """
    began, place, truth = time.perf_counter(), one.folder(folder), one.folder(baseline)
    files = [(key, f"{key}.png") for key in restored.keys]
    pairs = [Pair(key, place / "sr" / name, truth / "hq" / name if one.has_hq else None) for key, name in files]
    check_sizes(pairs, one.protocol)
    rows = evaluator.rows_of(torch.stack(list(evaluator.measure(pairs, load_pair))), restored.keys)
    result = RunResult(
        run_id=plan.run_id,
        study=plan.study,
        ablation=plan.ablation,
        seed=plan.seed,
        fingerprint=plan.fingerprint,
        protocol={"name": one.protocol.name, "fingerprint": one.protocol.fingerprint},
        rows=rows,
        summary=evaluator.summary(rows),
        steps=restored.steps,
        train_s=restored.train_s,
        evaluate_s=restored.restore_s + time.perf_counter() - began,
        device=restored.device,
        commit=git_commit(),
        versions=versions(),
        tracking=tracking,
        weights=restored.weights,
        measured_on=str(evaluator.device),
    )
    write_result(result, place)
    return result
