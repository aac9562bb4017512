"""What is logged while an adapter is trained, beside the loss."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.evaluation.protocol import get_protocol
from megasr.evaluation.result import Row
from megasr.images import to_uint8
from megasr.training import panels
from megasr.training.fixed_images import as_in_test, first_images, to_device
from megasr.training.fixed_scores import FixedScores
from megasr.training.loggers import RunWandbLogger
from megasr.training.loss_bins import LossBins
from megasr.training.probes import SiteProbes, gradient_norms, trained_parts
from megasr.training.stopwatch import Stopwatch
from megasr.training.throughput import OperationCount, describe_batch


class TrainingMonitor(lightning.Callback):
    """Statistics at every trainer.log_every_n_steps, and a few images restored, measured and shown now and then.

    The statistics are of the training's own passes and cost almost nothing: loss per range of timesteps, images per
    second without validation and monitoring, gradient norms per part, the strength of every gate and modulation
    (see megasr.training.probes). The training itself is not touched: its losses are the same bit for bit.

    Args:
        every_n_steps: optimizer steps between two restorations of the fixed images; 0 restores none.
        images: how many; the first ones of the evaluation set, the same in every run.
        protocol: how they are measured. Metrics whose weights are not on this machine, or that cannot be taken of
            images of this size, are left out; so is a number that cannot be taken of one sr.
        loss_bins: number of equal ranges of timesteps for which the loss is logged.
    """

    def __init__(
        self, every_n_steps: int = 500, images: int = 4, protocol: str = "weight-free-v1", loss_bins: int = 4
    ) -> None:
        least = {"every_n_steps": 0, "images": 1, "loss_bins": 1}
        for name, value in (("every_n_steps", every_n_steps), ("images", images), ("loss_bins", loss_bins)):
            if value < least[name]:
                raise UsageError(f"monitor.{name} must be at least {least[name]}, got {value}")
        self.every_n_steps, self.images, self.loss_bins = every_n_steps, images, loss_bins
        self.protocol = get_protocol(protocol)
        self.stopwatch = Stopwatch(time.perf_counter)
        self._fixed: list[SRBatch] = []
        self._scores: FixedScores | None = None
        self._probes: Any = None
        self._operations = OperationCount()

    # Statistics ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Read the fixed images, and begin to count.

        Raises:
            UsageError: there is no data module, or the images have not the size that the protocol measures.
        """
        self._steps = trainer.global_step
        self._num_images = 0
        self._gradients: dict[str, float] = {}
        self._described: str | None = None
        self._bins = LossBins(self.loss_bins, len(pl_module.alphas_cumprod), pl_module.device)
        self._probes = SiteProbes(pl_module.network)
        self._parts = trained_parts(pl_module.network)
        self._fixed = first_images(trainer, self.images) if self.every_n_steps and trainer.loggers else []
        size = self.protocol.size_px
        for batch in self._fixed:
            if size is not None and batch["hq"].shape[-2:] != (size, size):
                raise UsageError(f"monitor.protocol {self.protocol.name} measures {size} px, the data have other sizes")
        if self._fixed and trainer.is_global_zero:
            self._scores = FixedScores(self.protocol, self._fixed)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: SRBatch, batch_idx: int) -> None:
        """Watch the sites where this step will be logged; the rows of earlier steps are complete."""
        for logger in trainer.loggers:
            if isinstance(logger, RunWandbLogger):
                logger.close_row(before=trainer.global_step)
        # Lightning numbers its rows with a count that is one too high after a resume from the end of an epoch.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self.stopwatch.start()
        if self._described is None:
            self._described = describe_batch(trainer, len(batch["keys"]))
            rank_zero_info(self._described)
            if pl_module.device.type == "cuda" and trainer.loggers:  # of other devices no peak is known
                self._operations.watch(pl_module.network)
        if self._is_logged(trainer, self._steps + 1) and not self._probes.watching:
            self._probes.start()

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Measure the gradients of all micro-batches and processes together, before they are clipped."""
        if self._is_logged(trainer, self._steps + 1):
            self._gradients = gradient_norms(self._parts)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: SRBatch, batch_idx: int
    ) -> None:
        """Count, and log or restore when an optimizer step is done that asks for it."""
        self._bins.add(outputs["sample_loss"], outputs["timesteps"])
        self._num_images += len(batch["keys"])
        self._probes.take(~outputs["guidance_dropped"])
        if trainer.global_step == self._steps:
            return  # more gradients are accumulated
        self._steps = trainer.global_step
        if self._is_logged(trainer, self._steps):
            self._log_statistics(trainer, pl_module)
        if self._fixed and self._steps % self.every_n_steps == 0:
            running = self.stopwatch.pause()
            self._show(trainer, pl_module)
            if running:
                self.stopwatch.start()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Validation is not counted as training time."""
        self._was_running = self.stopwatch.pause()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Go on counting, unless this was the check before the training."""
        if self._was_running:
            self.stopwatch.start()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave no hooks in the network."""
        if self._probes is not None:
            self._probes.stop()

    def _is_logged(self, trainer: lightning.Trainer, step: int) -> bool:
        return bool(trainer.loggers) and trainer.log_every_n_steps > 0 and step % trainer.log_every_n_steps == 0

    def _log_statistics(self, trainer: lightning.Trainer, module: Any) -> None:
        strengths = self._probes.totals(module.device)
        self._probes.stop()
        bins = self._bins.take()
        # One exchange between the processes for all of it.
        both = torch.cat([bins.flatten(), strengths.flatten(), bins.new_tensor([self._num_images])])
        both = trainer.strategy.reduce(both, reduce_op="sum")
        bins, strengths = both[: bins.numel()].view_as(bins), both[bins.numel() : -1].view_as(strengths)
        num_images = float(both[-1])  # waits for the device: only now the time is that of the work
        seconds = self.stopwatch.lap()
        images_per_s = num_images / seconds
        numbers = {**self._bins.means(bins), "train/images_per_s": images_per_s}
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        numbers |= self._operations.rates(images_per_s, trainer.world_size, module.device, dtype)
        _log(trainer, {**numbers, **self._gradients, **self._probes.means(strengths)})
        self._num_images, self._gradients = 0, {}

    # Fixed images ----------------------------------------------------------------------------------------------------

    def _show(self, trainer: lightning.Trainer, module: Any) -> None:
        # Every process restores all images: parameters may be spread over them, and the others would have to wait.
        restored = []
        with as_in_test(trainer, module), self._probes:
            for fixed in self._fixed:
                batch = to_device(trainer, fixed)
                batch["maps"] = module.guidance_maps(batch)
                restored.append((batch, module.restore(batch).float().cpu()))
                self._probes.take()
            strengths = self._probes.means(self._probes.totals(module.device))
        if not trainer.is_global_zero:
            return
        assert self._scores is not None
        rows = [row for batch, sr in restored for row in self._scores.rows(sr, batch)]
        means = {f"monitor/{name}": mean for name, mean in self._scores.means(rows).items()}
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            pictures = [picture for result in restored for picture in _pictures(*result)]
            _log(trainer, means, _media(trainer.global_step, rows, self._scores.metric_names, pictures, strengths))
        elif means:
            _log(trainer, means)


def _pictures(batch: SRBatch, sr: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Of every image of a batch: name -> (C, h, w), in the order in which they are shown."""
    columns = {"lq": batch["lq"], **batch["maps"], "sr": sr} | ({"hq": batch["hq"]} if "hq" in batch else {})
    return [{name: images[i].float().cpu() for name, images in columns.items()} for i in range(len(sr))]


def _media(
    step: int,
    rows: list[Row],
    metrics: tuple[str, ...],
    pictures: list[dict[str, torch.Tensor]],
    strengths: dict[str, float],
) -> dict[str, Any]:
    """W&B's pictures and table, by key."""
    import wandb

    captions = [
        f"{row['key']} after {step} steps: {panels.scores(row, [name for name in metrics if name in row])}"
        for row in rows
    ]
    strips = [wandb.Image(panels.strip(tiles), caption=c) for tiles, c in zip(pictures, captions, strict=True)]
    table = wandb.Table(["step", "key", *metrics, "sr"])
    for row, tiles in zip(rows, pictures, strict=True):
        table.add_data(step, row["key"], *(row.get(name) for name in metrics), wandb.Image(to_uint8(tiles["sr"])))
    media = {"monitor/images": strips, "monitor/per_image": table}
    if strengths:
        title = f"share of a site's features that each branch makes, after {step} steps (one scale per column)"
        media["monitor/guidance_use"] = wandb.Image(panels.heat_map(strengths, title), caption=title)
    return media


def _log(trainer: lightning.Trainer, numbers: dict[str, float], media: dict[str, Any] | None = None) -> None:
    # Lightning numbers its rows from 0: the step that has just been done is row global_step - 1.
    for logger in trainer.loggers:
        shown = media if media and isinstance(logger, WandbLogger) else {}
        logger.log_metrics({**numbers, **shown}, step=trainer.global_step - 1)
        logger.save()
