"""What all LightningDataModules share: loaders that resume at any draw, and how lq is made of hq.

Training draws are random crops, counted from the start of training, so that a resumed run goes on with the very next
draw. Evaluation reads a fixed, complete, map-style set.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, Self

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.samples import DrawLoader, DrawSampler, Sample, SampleLoader, SampleSet, collate_or_error, degrade
from data_pipelines.workers import ErrorBudget, start_worker
from megasr.batch import SRBatch
from megasr.errors import UsageError

EVAL_SEED = 2**31  # evaluation images and their degradation do not depend on the seed of a run


class SRDataModule(lightning.LightningDataModule):
    """Loaders of training draws and evaluation samples. A source says how draw d and evaluation sample i are made.

    Args:
        scale_factor: size of hq over size of lq.
        crop_size_px: height and width of hq in training.
        eval_crop_size_px: height and width of hq in evaluation; None takes crop_size_px.
        batch_size: samples per batch and device.
        train_samples: draws per epoch, rounded down to whole batches.
        eval_samples: size of the evaluation set at most.
        num_workers: loader processes; 0 loads in the main process.
        seed: of every draw.
    """

    error_budget: ErrorBudget | None = None  # of sources whose images may be damaged
    has_hq = True  # the evaluation set has ground truth

    def __init__(
        self,
        scale_factor: int = 4,
        crop_size_px: int = 128,
        batch_size: int = 8,
        train_samples: int = 1024,
        eval_samples: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        eval_crop_size_px: int | None = None,
    ) -> None:
        super().__init__()
        at_least = {"crop_size_px": 16, "batch_size": 1, "train_samples": 1, "eval_samples": 1, "num_workers": 0}
        values = {"crop_size_px": crop_size_px, "batch_size": batch_size, "train_samples": train_samples}
        values |= {"eval_samples": eval_samples, "num_workers": num_workers}
        for name, least in at_least.items():
            if values[name] < least:
                raise UsageError(f"data.{name} must be at least {least}, got {values[name]}")
        if scale_factor < 1:
            raise UsageError(f"data.scale_factor must be at least 1, got {scale_factor}")
        if not 0 <= seed < EVAL_SEED:
            raise UsageError(f"data.seed must be in [0, 2**31), got {seed}")
        if train_samples < batch_size:
            raise UsageError(f"data.train_samples {train_samples} is less than one batch of {batch_size}")
        self.eval_crop_size_px = crop_size_px if eval_crop_size_px is None else eval_crop_size_px
        for name, size in (("crop_size_px", crop_size_px), ("eval_crop_size_px", self.eval_crop_size_px)):
            if size < 1 or size % scale_factor:
                raise UsageError(f"data.{name} {size} is not a positive multiple of data.scale_factor {scale_factor}")
        self.scale_factor, self.crop_size_px, self.batch_size = scale_factor, crop_size_px, batch_size
        self.num_workers, self.seed = num_workers, seed
        self.train_samples, self.eval_samples = train_samples // batch_size * batch_size, eval_samples
        self._resumed_at = (0, 0)  # (samples, batches) that the checkpoint had seen
        self._resumed_order: str | None = None

    def train_sample(self, draw: int) -> Sample:
        """Training draw `draw`, counted from the start of training."""
        raise NotImplementedError

    def eval_sample(self, index: int) -> Sample:
        """Evaluation sample `index`, 0 <= index < num_eval()."""
        raise NotImplementedError

    def num_eval(self) -> int:
        """Size of the evaluation set."""
        return self.eval_samples

    def eval_key(self, index: int) -> str:
        """What evaluation sample `index` is called."""
        return self.eval_sample(index).key

    def eval_keys(self) -> list[str]:
        """Names of the evaluation set, in its order."""
        return [self.eval_key(index) for index in range(self.num_eval())]

    def train_item(self, draw: int) -> Sample:
        """What the training loader gives for a draw: train_sample, and what is made of it in the loader."""
        return self.train_sample(draw)

    def eval_item(self, index: int) -> Sample:
        """What the evaluation loader gives for an index: eval_sample, and what is made of it in the loader."""
        return self.eval_sample(index)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Draws of the current epoch, from where training stands.

        Raises:
            UsageError: train_samples is less than one batch for every process, or the draws are those of other images
                or of another seed than the checkpoint's.
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
        sampler = DrawSampler(self.consumed_samples, steps * samples_per_step, rank, world_size)
        # The set has no end: the sampler decides which draws an epoch consists of.
        return DrawLoader(
            SampleSet(self._for_workers().train_item, 2**62),
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_or_error,
            worker_init_fn=start_worker,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        """The whole evaluation set, in order."""
        return SampleLoader(
            SampleSet(self._for_workers().eval_item, self.num_eval()),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_or_error,
            worker_init_fn=start_worker,
        )

    def _for_workers(self) -> Self:
        """Itself without the trainer: workers that are not forked are sent what they need, not the model."""
        alone = copy.copy(self)
        alone.trainer = None
        return alone

    def test_dataloader(self) -> torch.utils.data.DataLoader:
        """The same set as for validation."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        """Count the images that had to be left out.

        Raises:
            MegaSRError: they are more than the error budget allows.
        """
        skipped = batch.get("skipped")
        if skipped and self.error_budget is not None:
            try:
                for sample in skipped:
                    self.error_budget.add(sample, self.trainer.world_size if self.trainer else 1)
            finally:
                if self.trainer is not None:
                    for logger in self.trainer.loggers:
                        logger.log_metrics(self.error_budget.counts(), self.trainer.global_step)
        return batch

    def teardown(self, stage: str) -> None:
        """Tell what was left out."""
        if stage == "fit" and self.error_budget is not None and self.error_budget.summary():
            rank_zero_info(f"left out of the training: {self.error_budget.summary()}")

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, in samples of all processes together, and what the error budget has counted."""
        state: dict[str, Any] = {"consumed_samples": self.consumed_samples(), "batches": self._batches()}
        state["order"] = self.order_fingerprint()
        return state if self.error_budget is None else state | {"error_budget": self.error_budget.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the next draw, whatever the batch size and the number of processes were.

        Whether the draws are those of the same images is asked when training begins: a checkpoint may be measured
        where its training images are not.
        """
        self._resumed_at = (state["consumed_samples"], state["batches"])
        self._resumed_order = state["order"]
        # It holds what the first process has met; the others begin anew.
        first = self.trainer is None or self.trainer.global_rank == 0
        if first and self.error_budget is not None and "error_budget" in state:
            self.error_budget.load_state_dict(state["error_budget"])

    def order_fingerprint(self) -> str:
        """What the order of the draws depends on."""
        return f"{type(self).__name__} with seed {self.seed}"

    def consumed_samples(self) -> int:
        """Draws that training has used up so far, of all processes together."""
        samples, batches = self._resumed_at
        world_size = self.trainer.world_size if self.trainer else 1
        return samples + (self._batches() - batches) * self.batch_size * world_size

    def _batches(self) -> int:
        # Not `completed`: Lightning counts that only after the hook in which checkpoints are written.
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed if self.trainer else 0


class SyntheticDataModule(SRDataModule):
    """Sources of hq alone: lq is made by a degradation, in the loader's workers or on the device. See SRDataModule.

    Evaluation is degraded by the `cpu` back end always: its numbers do not depend on how training is set up.

    Args:
        degradation: name of the preset that makes lq from hq.
        backend: where training's lq is made: `cpu` in the loader's workers with OpenCV and libjpeg; `device` in batches
            on the GPU, for machines with few cores. Both apply the same parameters.
        usm_target: sharpen hq in training before lq is made of it, as Real-ESRGAN and SeeSR do; evaluation never does.
        eval_degradation: preset of the evaluation, so that runs with other trainings can be compared (the field trains
            with realesrgan_strong and evaluates on stablesr_mild); None takes `degradation`.
        settings: see SRDataModule.
    """

    def __init__(
        self,
        degradation: str = "bicubic",
        backend: Literal["cpu", "device"] = "cpu",
        usm_target: bool = False,
        eval_degradation: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if backend not in ("cpu", "device"):
            raise UsageError(f"data.backend must be cpu or device, got {backend!r}")
        self.degradation = get_degradation(degradation, self.scale_factor)
        self.eval_degradation = get_degradation(eval_degradation or degradation, self.scale_factor)
        self.backend, self.usm_target = backend, usm_target

    def train_item(self, draw: int) -> Sample:
        sample = self.train_sample(draw)
        if sample.lq is not None or self.backend == "device":
            return sample
        return degrade(sample, self.degradation, self.seed, usm_target=self.usm_target)

    def eval_item(self, index: int) -> Sample:
        return degrade(self.eval_sample(index), self.eval_degradation, EVAL_SEED)

    def on_after_batch_transfer(self, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        """Add lq and what made it, on the device of hq, unless the loader has done it."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if "lq" not in batch:
            if self.usm_target:
                from data_pipelines.degradations.device import sharpen_batched

                batch["hq"] = sharpen_batched(batch["hq"])
            params = self.degradation.sample_params(self.seed, batch["keys"])
            batch["lq"] = self.degradation.apply(batch["hq"], params)
            batch["degradation"] = params
        return batch
