"""What a training shows: losses by timestep, fixed images and their scores, strengths of the branches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError, metric_key
from megasr.evaluation.evaluator import Evaluator, Row
from megasr.evaluation.protocol import Protocol, get_protocol
from megasr.images import to_uint8
from megasr.training.callbacks import EMA
from megasr.training.probes import SiteProbes, describe_batch, gradient_norms, trained_parts

_MIN_HEIGHT_PX = 192  # smaller images are enlarged by a whole factor


def strip(images: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Images of one sample side by side, enlarged without smoothing to the size of the largest.

    Args:
        images: name -> (C, h, w) in [0, 1] of one aspect ratio; the mean is shown of what has not three channels.

    Returns:
        (H, W, 3) uint8.
    """
    from torchvision.utils import make_grid

    height, width = max(tuple(image.shape[-2:]) for image in images.values())
    factor = -(-_MIN_HEIGHT_PX // height)
    rgb = [image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1) for image in images.values()]
    tiles = [F.interpolate(image[None].float(), (height * factor, width * factor), mode="nearest")[0] for image in rgb]
    return to_uint8(make_grid(tiles, nrow=len(tiles), padding=4, pad_value=1.0))


def heat_map(strengths: Mapping[str, float], title: str) -> np.ndarray:
    """Sites (rows, in the order of the forward pass) by branches (columns): how strong every branch is, in per cent.

    Args:
        strengths: gate/<site> and modulation/<site>/<branch> -> share of the features (see SiteProbes). Every column is
            coloured from 0 to its largest value.
        title: above the picture.

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = {}
    for key, value in strengths.items():
        kind, site, *branch = key.split("/")
        cells[site, branch[0] if kind == "modulation" else "image tokens"] = value
    sites, branches = (list(dict.fromkeys(pair[axis] for pair in cells)) for axis in (0, 1))
    values = np.array([[cells.get((site, branch), np.nan) for branch in branches] for site in sites])
    largest = np.nanmax(values, axis=0)
    figure = Figure(figsize=(3 + 1.2 * len(branches), 1.2 + 0.3 * len(sites)), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.imshow(values / np.where(largest > 0, largest, 1), cmap="Reds", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(branches)), branches)
    axes.set_yticks(range(len(sites)), sites)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value > 0.6 * largest[column] else "black"
            axes.text(column, row, f"{100 * value:.3g} %", ha="center", va="center", color=color)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def first_images(trainer: lightning.Trainer, count: int) -> list[SRBatch]:
    """Batches of the first `count` images of the data module's validation set, on the CPU.

    Raises:
        UsageError: the trainer has no data module.
    """
    if trainer.datamodule is None:
        raise UsageError("the monitor restores images of a data module; with plain loaders set monitor.every_n_steps=0")
    batches: list[SRBatch] = []
    missing = count
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers from the global generator
        for batch in trainer.datamodule.val_dataloader():
            batches.append(_head(batch, missing))
            missing -= len(batches[-1]["keys"])
            if missing == 0:
                break
    return batches


def _head(batch: SRBatch, count: int) -> SRBatch:
    def head(value: Any) -> Any:
        return {key: part[:count] for key, part in value.items()} if isinstance(value, dict) else value[:count]

    return SRBatch(**{key: head(value) for key, value in batch.items()})  # type: ignore[typeddict-item]


@contextlib.contextmanager
def as_in_test(trainer: lightning.Trainer, module: lightning.LightningModule) -> Iterator[None]:
    """Inside, the module restores as in `megasr test`: averaged weights, evaluation mode, the trainer's precision."""
    training = [part for part in module.modules() if part.training]
    averages = [callback for callback in trainer.callbacks if isinstance(callback, EMA)]
    for average in averages:
        average.swap_in(module)
    module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        for part in training:
            part.training = True
        for average in averages:
            average.swap_out(module)


class FixedScores:
    """Measure the fixed images, every metric by itself: one that cannot be computed is left out, with a message.

    Args:
        protocol: which metrics. Distances of sets and metrics whose weights are not on this machine are left out.
        has_hq: the images have ground truth.
    """

    def __init__(self, protocol: Protocol, has_hq: bool) -> None:
        names = [spec.name for spec in protocol.metrics if not spec.of_set and (has_hq or not spec.needs_hq)]
        evaluators = {name: Evaluator(protocol, metrics=[name], missing="skip", has_hq=has_hq) for name in names}
        self._evaluators = {name: evaluator for name, evaluator in evaluators.items() if evaluator.metric_names}
        self._reported: set[str] = set()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics in the order of the protocol."""
        return tuple(self._evaluators)

    def rows(self, sr: torch.Tensor, batch: SRBatch) -> list[Row]:
        """One row per image of (B, 3, H, W) sr, with the metrics that could be computed."""
        hq = batch["hq"].float().cpu() if "hq" in batch else None
        rows: list[Row] = []
        for i, key in enumerate(batch["keys"]):
            rows.append({"key": key})
            one = slice(i, i + 1)
            for name, evaluator in self._evaluators.items():
                try:
                    (row,) = evaluator.rows(sr[one], None if hq is None else hq[one], [key])
                    rows[-1][name] = row[name]
                except MegaSRError as error:
                    if name not in self._reported:
                        rank_zero_info(f"the monitor goes on without {name} where it cannot be computed: {error}")
                    self._reported.add(name)
        return rows

    def means(self, rows: list[Row]) -> dict[str, float]:
        """Mean of every metric over the rows that have it."""
        values = {name: [row[name] for row in rows if name in row] for name in self.metric_names}
        return {name: sum(column) / len(column) for name, column in values.items() if column}


class LossBins:
    """Sum the loss of samples in equal ranges of timesteps, on the device.

    Args:
        bins: how many ranges.
        num_timesteps: T of the noise schedule; timesteps are 0 ... T - 1.
        device: of the losses.
    """

    def __init__(self, bins: int, num_timesteps: int, device: torch.device | str = "cpu") -> None:
        self.bins, self._num_timesteps = bins, num_timesteps
        first = [-(-index * num_timesteps // bins) for index in range(bins + 1)]
        self.names = [f"train/loss_t{a:03d}-{b - 1:03d}" for a, b in pairwise(first)]
        self._totals = torch.zeros(2, bins, device=device)

    def add(self, losses: torch.Tensor, timesteps: torch.Tensor) -> None:
        """Add the losses (B,) of samples at `timesteps` (B,)."""
        bins = timesteps * self.bins // self._num_timesteps
        self._totals[0].index_add_(0, bins, losses.detach().float())
        self._totals[1].index_add_(0, bins, torch.ones_like(losses, dtype=torch.float32))

    def take(self) -> torch.Tensor:
        """(2, bins): sums of the losses and numbers of samples since the last call."""
        totals, self._totals = self._totals, torch.zeros_like(self._totals)
        return totals

    def means(self, totals: torch.Tensor) -> dict[str, float]:
        """Mean loss of every range that had samples, from `take` (summed over processes)."""
        sums, counts = totals.tolist()
        return {name: total / count for name, total, count in zip(self.names, sums, counts, strict=True) if count > 0}


class TrainingMonitor(lightning.Callback):
    """Log statistics at every trainer.log_every_n_steps, and restore, measure and show a few images now and then.

    The statistics are of the training's own passes and cost almost nothing: loss per range of timesteps, images per
    second without validation and monitoring, gradient norms per part, the strength of every gate and modulation
    (see megasr.training.probes). They leave the losses the same bit for bit.

    Args:
        every_n_steps: optimizer steps between two restorations of the fixed images; 0 restores none.
        images: how many; the first ones of the validation set, the same in every run.
        protocol: how they are measured, as val/<metric>. Metrics whose weights are not on this machine, or that cannot
            be computed of images of this size, are left out.
        loss_bins: number of equal ranges of timesteps for which the loss is logged.
    """

    def __init__(
        self, every_n_steps: int = 500, images: int = 4, protocol: str = "weight-free-v2", loss_bins: int = 4
    ) -> None:
        least = {"every_n_steps": 0, "images": 1, "loss_bins": 1}
        for name, value in (("every_n_steps", every_n_steps), ("images", images), ("loss_bins", loss_bins)):
            if value < least[name]:
                raise UsageError(f"monitor.{name} must be at least {least[name]}, got {value}")
        self.every_n_steps, self.images, self.loss_bins = every_n_steps, images, loss_bins
        self.protocol = get_protocol(protocol)
        self.clock = time.perf_counter
        self._paused = 0.0
        self._fixed: list[SRBatch] = []
        self._scores: FixedScores | None = None
        self._probes: SiteProbes | None = None

    # Statistics ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Read the fixed images.

        Raises:
            UsageError: there is no data module, or the images do not have the size that the protocol measures.
        """
        self._steps, self._num_images = trainer.global_step, 0
        self._since: float | None = None
        self._gradients: dict[str, float] = {}
        self._bins = LossBins(self.loss_bins, pl_module.prior.schedule.num_timesteps, pl_module.device)
        self._probes = SiteProbes(pl_module.network)
        self._parts = trained_parts(pl_module.network)
        self._fixed = first_images(trainer, self.images) if self.every_n_steps and trainer.loggers else []
        size = self.protocol.size_px
        if size is not None and any(batch["hq"].shape[-2:] != (size, size) for batch in self._fixed):
            raise UsageError(f"monitor.protocol {self.protocol.name} measures {size} px, the data have other sizes")
        if self._fixed and trainer.is_global_zero:
            self._scores = FixedScores(self.protocol, "hq" in self._fixed[0])

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: SRBatch, batch_idx: int) -> None:
        """Measure the sites in a step that will be logged."""
        # Lightning numbers its rows with a count that is one too high after a resume from the end of an epoch.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if self._since is None:
            self._since, self._paused = self.clock(), 0.0
            rank_zero_info(describe_batch(trainer, batch))
        assert self._probes is not None
        if self._is_logged(trainer, self._steps + 1) and not self._probes.watching:
            self._probes.start()

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Measure the gradients of all micro-batches and processes together, before they are clipped."""
        if self._is_logged(trainer, self._steps + 1):
            self._gradients = gradient_norms(self._parts)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: SRBatch, batch_idx: int
    ) -> None:
        """Count, and log or restore after the optimizer steps that are due."""
        assert self._probes is not None
        self._bins.add(outputs["sample_loss"], outputs["timesteps"])
        self._num_images += len(batch["keys"])
        self._probes.take(~outputs["guidance_dropped"])
        if trainer.global_step == self._steps:
            return  # more gradients are accumulated
        self._steps = trainer.global_step
        if self._is_logged(trainer, self._steps):
            self._log_statistics(trainer, pl_module, self._probes)
        if self._fixed and self._steps % self.every_n_steps == 0:
            self._paused -= self.clock()
            self._show(trainer, pl_module, self._probes)
            self._paused += self.clock()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Validation does not count as training time."""
        self._paused -= self.clock()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Count training time again."""
        self._paused += self.clock()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave no hooks in the network."""
        if self._probes is not None:
            self._probes.stop()

    def _is_logged(self, trainer: lightning.Trainer, step: int) -> bool:
        return bool(trainer.loggers) and trainer.log_every_n_steps > 0 and step % trainer.log_every_n_steps == 0

    def _log_statistics(self, trainer: lightning.Trainer, module: Any, probes: SiteProbes) -> None:
        strengths = probes.totals(module.device)
        probes.stop()
        bins = self._bins.take()
        # One reduction over the processes for all of it.
        both = torch.cat([bins.flatten(), strengths.flatten(), bins.new_tensor([self._num_images])])
        both = trainer.strategy.reduce(both, reduce_op="sum")
        bins, strengths = both[: bins.numel()].view_as(bins), both[bins.numel() : -1].view_as(strengths)
        num_images = float(both[-1])  # waits for the device: only now the time is that of the work
        assert self._since is not None
        now = self.clock()
        rate = {"train/images_per_s": num_images / (now - self._since - self._paused)}
        _log(trainer, {**self._bins.means(bins), **rate, **self._gradients, **probes.means(strengths)})
        self._since, self._paused, self._num_images, self._gradients = now, 0.0, 0, {}

    # Fixed images ----------------------------------------------------------------------------------------------------

    def _show(self, trainer: lightning.Trainer, module: Any, probes: SiteProbes) -> None:
        # Every process restores all images: parameters may be sharded, and the others would have to wait.
        data, device = trainer.datamodule, trainer.strategy.root_device  # type: ignore[attr-defined]
        restored = []
        with as_in_test(trainer, module), probes:
            for fixed in self._fixed:
                batch = data.on_after_batch_transfer(data.transfer_batch_to_device(fixed, device, 0), 0)
                batch["maps"] = module.guidance_maps(batch)
                restored.append((batch, module.restore(batch).float().cpu()))
                probes.take()
            strengths = probes.means(probes.totals(module.device))
        if not trainer.is_global_zero:
            return
        assert self._scores is not None
        rows = [row for batch, sr in restored for row in self._scores.rows(sr, batch)]
        means = {metric_key("val", name): mean for name, mean in self._scores.means(rows).items()}
        media = {}
        if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            pictures = [picture for batch, sr in restored for picture in _pictures(batch, sr)]
            media = _media(trainer.global_step, rows, self._scores.metric_names, pictures, strengths)
        if means or media:
            _log(trainer, means, media)


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

    strips, table = [], wandb.Table(["step", "key", *metrics, "sr"])
    for row, images in zip(rows, pictures, strict=True):
        scores = ", ".join(f"{name} {row[name]:.4g}" for name in metrics if name in row)
        caption = f"{row['key']} after {step} steps: {scores} ({' | '.join(images)})"
        strips.append(wandb.Image(strip(images), caption=caption))
        table.add_data(step, row["key"], *(row.get(name) for name in metrics), wandb.Image(to_uint8(images["sr"])))
    media = {"monitor/images": strips, "monitor/per_image": table}
    if strengths:
        title = f"share of each branch in a site's features after {step} steps (one scale per column)"
        media["monitor/guidance_use"] = wandb.Image(heat_map(strengths, title), caption=title)
    return media


def _log(trainer: lightning.Trainer, numbers: dict[str, float], media: dict[str, Any] | None = None) -> None:
    # Lightning numbers its rows from 0: the step that has just been done is row global_step - 1.
    for logger in trainer.loggers:
        extra = media if media and isinstance(logger, WandbLogger) else {}
        logger.log_metrics({**numbers, **extra}, step=trainer.global_step - 1)
        logger.save()
