"""The data module behind all others: loaders that resume at any draw, and lq made from hq.

Training draws are numbered from the start of training, so that a resumed run continues with the next one. Evaluation
reads a fixed set, whole.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, Self

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.filters import FilteredSource, ImageFilter
from data_pipelines.samples import (
    DrawLoader,
    DrawSampler,
    EvalSet,
    Sample,
    SampleLoader,
    SampleSet,
    Source,
    UnusableSampleError,
    center_crop_sample,
    collate_or_error,
    crop_sample,
    degrade,
)  # fmt: skip
from data_pipelines.workers import ErrorBudget, read_or_next, start_worker
from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.weights.local import find_prior, read_sizes

EVAL_SEED = 2**31  # evaluation images and their degradation do not depend on the seed of a run
Backend = Literal["cpu", "device"]
CROP_PX = 512  # what Stable Diffusion 2.1-base and 1.5 were trained on
# What the arguments of data modules mean that have the same name in several; their --help shows it.
_HELP = {
    "degradation": "name of the degradation that makes lq from hq; names with a plus between them, such as"
    " stablesr_mild+bicubic, are drawn from anew for each image.",
    "backend": "where training's lq is made: `cpu` in the loader's workers with OpenCV and libjpeg, `device` in batches"
    " on the GPU, for machines with few cores. Both apply the same parameters; evaluation always uses `cpu`.",
    "usm_target": "sharpen hq in training before lq is made of it, as Real-ESRGAN and SeeSR do; never in evaluation.",
    "eval_degradation": "degradation of the evaluation (the field trains with realesrgan_strong and evaluates on"
    " stablesr_mild); None takes `degradation`.",
    "scale_factor": "size of hq over size of lq.",
    "crop_size_px": "height and width of hq in training; smaller images are left out and counted. Where it is None, a"
    f" configuration takes the size that the prior was trained on, and Python {CROP_PX}.",
    "eval_crop_size_px": "height and width of hq in evaluation; None takes crop_size_px.",
    "batch_size": "samples per batch and device.",
    "train_samples": "draws per epoch, rounded down to whole batches.",
    "eval_samples": "size of the evaluation set at most.",
    "num_workers": "loader processes; 0 loads in the main process.",
    "seed": "of every draw.",
    "min_sharpness": "less sharp training images are left out and counted (see data_pipelines.filters).",
    "max_damaged": "share of the training images that may be damaged before the run stops; until then they are left out"
    " and counted.",
    "cache_dir": "where copies are kept of remote indices and of what cannot be read in ranges; None is the user's"
    " cache folder.",
    "cache_gb": "size of these copies of a set together, in 1e9 bytes.",
}


def choose_crop(data: Any, prior: str) -> None:
    """Set crop_size_px to the size that a prior was trained on, where a configuration leaves it open.

    Args:
        data: init_args of a data module: a dictionary or a Namespace, changed in place.
        prior: where the prior lies.

    Raises:
        MegaSRError: it is not on this machine.
    """
    if data.get("crop_size_px", 0) is not None:
        return
    sizes = read_sizes(find_prior(prior))
    native_px, multiple = (sizes and sizes.native_px) or CROP_PX, sizes.multiple if sizes else 1
    multiple = math.lcm(multiple, data.get("scale_factor") or 1)
    data["crop_size_px"] = native_px // multiple * multiple or multiple
    rank_zero_info(f"data.crop_size_px is not set: {data['crop_size_px']}, which the prior {prior} was trained on")


class SRDataModule(lightning.LightningDataModule):
    """Loaders of training draws and of an evaluation set.

    Training draws are random crops of `train`, whose unusable images are left out and counted; evaluation takes centre
    crops of `evaluation`. Subclasses without sources implement train_sample and eval_sample instead. A degradation of
    None leaves lq to the samples; see the data modules for the other arguments.

    Raises:
        UsageError: a value cannot be used.
    """

    has_hq = True  # the evaluation set has ground truth

    def __init__(
        self, train: Source | None = None, evaluation: EvalSet | None = None, *, scale_factor: int = 4,
        crop_size_px: int = 128, eval_crop_size_px: int | None = None, batch_size: int = 8, train_samples: int = 1024,
        eval_samples: int = 16, num_workers: int = 0, seed: int = 0, degradation: str | None = None,
        eval_degradation: str | None = None, backend: Backend = "cpu", usm_target: bool = False,
        min_sharpness: float = 0.0, max_damaged: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scale_factor, self.crop_size_px, self.batch_size = scale_factor, crop_size_px, batch_size
        self.eval_crop_size_px = crop_size_px if eval_crop_size_px is None else eval_crop_size_px
        self.train_samples, self.eval_samples = train_samples, eval_samples
        self.num_workers, self.seed, self.backend, self.usm_target = num_workers, seed, backend, usm_target
        self._check()
        self.train_samples = train_samples // batch_size * batch_size
        self.degradation = get_degradation(degradation, scale_factor) if degradation else None
        self.eval_degradation = (
            get_degradation(eval_degradation, scale_factor) if eval_degradation else self.degradation
        )
        self.train_source, self.eval_source, self.error_budget = train, evaluation, None
        if train is not None:
            self.train_source = FilteredSource(train, ImageFilter(crop_size_px, min_sharpness))
            self.error_budget = ErrorBudget(max_damaged, len(train))
        self._resumed_at = (0, 0)  # (samples, batches) that the checkpoint had seen
        self._resumed_order: str | None = None

    def _check(self) -> None:
        least = {"scale_factor": 1, "crop_size_px": 16, "batch_size": 1, "train_samples": 1, "eval_samples": 1}
        for name, value in (least | {"num_workers": 0}).items():
            if getattr(self, name) < value:
                raise UsageError(f"data.{name} must be at least {value}, got {getattr(self, name)}")
        if not 0 <= self.seed < EVAL_SEED:
            raise UsageError(f"data.seed must be in [0, 2**31), got {self.seed}")
        if self.train_samples < self.batch_size:
            raise UsageError(f"data.train_samples {self.train_samples} is less than one batch of {self.batch_size}")
        for name in ("crop_size_px", "eval_crop_size_px"):
            if (size := getattr(self, name)) < 1 or size % self.scale_factor:
                factor = self.scale_factor
                raise UsageError(f"data.{name} {size} is not a positive multiple of data.scale_factor {factor}")
        if self.backend not in ("cpu", "device"):
            raise UsageError(f"data.backend must be cpu or device, got {self.backend!r}")

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Complete the docstring with the arguments that it shares with other data modules."""
        super().__init_subclass__(**keywords)
        text = inspect.cleandoc(cls.__doc__ or "")
        taken = inspect.signature(cls.__init__).parameters
        shared = "".join(f"    {n}: {words}\n" for n, words in _HELP.items() if n in taken and f"    {n}: " not in text)
        first, args, rest = text.partition("Args:\n")
        cls.__doc__ = f"{first}{args}{shared}{rest}" if args else f"{first}\n\nArgs:\n{shared}"

    def train_sample(self, draw: int) -> Sample:
        """Training draw `draw`, counted from the start of training; lq is not made yet."""
        assert self.train_source is not None
        sample = read_or_next(self.train_source, draw, self.seed)
        crop = crop_sample(sample, self.crop_size_px, self.seed, sample.key, draw)
        return replace(crop, key=f"{sample.key}/{draw}")

    def eval_sample(self, index: int) -> Sample:
        """Evaluation sample `index`, 0 <= index < num_eval(); lq is not made yet."""
        assert self.eval_source is not None
        return center_crop_sample(self.eval_source.read(index), self.eval_crop_size_px)

    def eval_key(self, index: int) -> str:
        """Key of evaluation sample `index`, without reading its image where that is possible."""
        return self.eval_sample(index).key if self.eval_source is None else self.eval_source.key(index)

    def num_eval(self) -> int:
        """Size of the evaluation set."""
        return self.eval_samples if self.eval_source is None else min(self.eval_samples, len(self.eval_source))

    def eval_keys(self) -> list[str]:
        """Keys of the evaluation set, in its order."""
        return [self.eval_key(index) for index in range(self.num_eval())]

    def list_tags(self, evaluation: bool, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """The tags of all images that the training, or the evaluation, may show; each once. No image is read.

        Args:
            evaluation: which of both.
            progress: takes the number of images that were looked at, and of all.

        Raises:
            UsageError: the data module makes them while it draws.
        """
        source = self.eval_source if evaluation else self.train_source
        if source is None:
            raise UsageError(f"{type(self).__name__} makes its tags while it draws: they cannot be listed")
        tags, count = dict[str, None](), self.num_eval() if evaluation else len(source)
        for index in range(count):
            with suppress(UnusableSampleError):  # training leaves these images out, evaluation stops at them
                tags[source.tags(index)] = None
            progress(index + 1, count)
        return list(tags)

    def train_item(self, draw: int) -> Sample:
        """What the training loader gives for a draw."""
        sample = self.train_sample(draw)
        if self.degradation is None or sample.lq is not None or self.backend == "device":
            return sample
        return degrade(sample, self.degradation, self.seed, self.usm_target)

    def eval_item(self, index: int) -> Sample:
        """What the evaluation loader gives for an index."""
        sample = self.eval_sample(index)
        return sample if self.eval_degradation is None else degrade(sample, self.eval_degradation, EVAL_SEED)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Draws of the current epoch, from where training stands.

        Raises:
            UsageError: train_samples is less than one batch for every process, or the checkpoint trained on other
                images or with another seed.
        """
        if self._resumed_order not in (None, self.order_fingerprint()):
            raise UsageError(
                f"cannot resume: the checkpoint trained on {self._resumed_order}, the data module draws from "
                f"{self.order_fingerprint()}; images would be repeated or left out"
            )
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        samples_per_step = self.batch_size * world_size
        steps = self.train_samples // samples_per_step
        if steps == 0:
            raise UsageError(
                f"data.train_samples {self.train_samples} is less than one batch of {self.batch_size} "
                f"for each of {world_size} devices"
            )
        return DrawLoader(
            SampleSet(self._without_trainer().train_item, 2**62),  # the sampler decides what an epoch consists of
            self.batch_size,
            sampler=DrawSampler(self.consumed_samples, steps * samples_per_step, rank, world_size),
            num_workers=self.num_workers,
            collate_fn=collate_or_error,
            worker_init_fn=start_worker,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        """The whole evaluation set, in order."""
        return SampleLoader(
            SampleSet(self._without_trainer().eval_item, self.num_eval()),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_or_error,
            worker_init_fn=start_worker,
        )

    def _without_trainer(self) -> Self:
        """A copy to pickle for workers that are not forked: the trainer holds the model."""
        alone = copy.copy(self)
        alone.trainer = None
        return alone

    def test_dataloader(self) -> torch.utils.data.DataLoader:
        """The same set as for validation."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        """Count the images that were left out; with the `device` back end, make lq.

        Raises:
            MegaSRError: more images are damaged than the error budget allows.
        """
        if self.error_budget is not None and batch.get("skipped"):
            try:
                for sample in batch["skipped"]:
                    self.error_budget.add(sample, self.trainer.world_size if self.trainer else 1)
            finally:
                for logger in self.trainer.loggers if self.trainer else ():
                    logger.log_metrics(self.error_budget.counts(), self.trainer.global_step)
        if "lq" not in batch and self.degradation is not None:
            if self.usm_target:
                from data_pipelines.degradations.device import sharpen_batched

                batch["hq"] = sharpen_batched(batch["hq"])
            batch["degradation"] = self.degradation.sample_params(self.seed, batch["keys"])
            batch["lq"] = self.degradation.apply(batch["hq"], batch["degradation"])
        return batch

    def teardown(self, stage: str) -> None:
        """Print what was left out."""
        if stage == "fit" and self.error_budget is not None and self.error_budget.summary():
            rank_zero_info(f"left out of the training: {self.error_budget.summary()}")

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, in samples of all processes together, and what the error budget has counted."""
        state: dict[str, Any] = {"consumed_samples": self.consumed_samples(), "batches": self._batches()}
        state["order"] = self.order_fingerprint()
        return state if self.error_budget is None else state | {"error_budget": self.error_budget.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the next draw, whatever the batch size and the number of processes were.

        The order is compared when training begins: a checkpoint may be evaluated where its training images are not.
        """
        self._resumed_at = (state["consumed_samples"], state["batches"])
        self._resumed_order = state["order"]
        # it holds the counts of the first process; the others begin anew
        first = self.trainer is None or self.trainer.global_rank == 0
        if first and self.error_budget is not None and "error_budget" in state:
            self.error_budget.load_state_dict(state["error_budget"])

    def order_fingerprint(self) -> str:
        """What the order of the draws depends on."""
        images = "" if self.train_source is None else f" over images {self.train_source.fingerprint}"
        return f"{type(self).__name__} with seed {self.seed}{images}"

    def consumed_samples(self) -> int:
        """Draws that training has used so far, of all processes together."""
        samples, batches = self._resumed_at
        world_size = self.trainer.world_size if self.trainer else 1
        return samples + (self._batches() - batches) * self.batch_size * world_size

    def _batches(self) -> int:
        # not `completed`: Lightning counts that only after the hook in which checkpoints are written
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed if self.trainer else 0
