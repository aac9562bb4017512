"""What a training shows: losses by timestep, fixed images and their scores, throughput, strengths of the branches."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image, ImageDraw, ImageFont

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.protocol import Protocol, get_protocol
from megasr.evaluation.result import Row
from megasr.images import to_uint8
from megasr.training.callbacks import EMA
from megasr.training.loggers import RunWandbLogger
from megasr.training.probes import OperationCount, SiteProbes, describe_batch, gradient_norms, trained_parts


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


def to_device(trainer: lightning.Trainer, batch: SRBatch) -> SRBatch:
    """What a validation step would be given."""
    data = trainer.datamodule
    return data.on_after_batch_transfer(data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0), 0)


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
    """Measures the fixed images, every metric by itself.

    Metrics whose weights are missing are left out, and those that cannot be taken of any of the images themselves,
    which is said: their formulas need larger ones.

    Args:
        protocol: how it is measured. Its distances of sets are not taken.
        fixed: batches with (B, 3, H, W) hq in [0, 1]; without hq nothing can be tried before there is a sr.
    """

    def __init__(self, protocol: Protocol, fixed: Sequence[SRBatch]) -> None:
        has_hq = "hq" in fixed[0]
        names = [spec.name for spec in protocol.metrics if not spec.of_set and (has_hq or not spec.needs_hq)]
        alone = {name: Evaluator(protocol, metrics=[name], missing="skip", has_hq=has_hq) for name in names}
        self._evaluators = {name: evaluator for name, evaluator in alone.items() if evaluator.metric_names}
        self._said: set[str] = set()
        for name in self.metric_names if has_hq else ():
            found: dict[str, float] = {}
            originals = ((batch["hq"].float(), batch["keys"]) for batch in fixed)
            errors = [e for hq, keys in originals for e in self._measure(name, hq, hq, keys, found)]
            if not found:
                self._say(name, errors[0])
                del self._evaluators[name]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that are taken, in the order of the protocol."""
        return tuple(self._evaluators)

    def rows(self, sr: torch.Tensor, batch: SRBatch) -> list[Row]:
        """One row per image of a batch, with the numbers that can be taken of (B, 3, H, W) sr."""
        rows: dict[str, Row] = {key: {"key": key} for key in batch["keys"]}
        for name in self.metric_names:
            found: dict[str, float] = {}
            for error in self._measure(name, sr, _hq(batch), batch["keys"], found):
                self._say(name, error)
            for key, value in found.items():
                rows[key][name] = value
        return list(rows.values())

    def means(self, rows: Sequence[Row]) -> dict[str, float]:
        """Mean of every metric over the rows that have it."""
        values = {name: [row[name] for row in rows if name in row] for name in self.metric_names}
        return {name: math.fsum(got) / len(got) for name, got in values.items() if got}

    def _measure(
        self, name: str, sr: torch.Tensor, hq: torch.Tensor | None, keys: list[str], found: dict[str, float]
    ) -> list[MegaSRError]:
        """Put key -> value into `found`; return why values are lacking."""
        try:
            found |= {row["key"]: row[name] for row in self._evaluators[name].rows(sr, hq, keys)}
        except MegaSRError as error:
            if len(keys) == 1:
                return [error]
            parts = ((slice(i, i + 1), [key]) for i, key in enumerate(keys))
            return [
                error
                for part, key in parts
                for error in self._measure(name, sr[part], None if hq is None else hq[part], key, found)
            ]
        return []

    def _say(self, name: str, error: MegaSRError) -> None:
        if self._said.isdisjoint({name, str(error)}):
            rank_zero_info(f"the monitor goes on without {name} where it cannot be taken: {error}")
        self._said |= {name, str(error)}


def _hq(batch: SRBatch) -> torch.Tensor | None:
    return batch["hq"].float().cpu() if "hq" in batch else None


class LossBins:
    """Sums the loss of samples in equal ranges of timesteps until they are asked for. Stays on the device.

    Args:
        bins: how many ranges.
        num_timesteps: T of the noise schedule; timesteps are 0 ... T - 1.
        device: where losses lie.
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


class Stopwatch:
    """Seconds between two laps, without the pauses.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._elapsed = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Run on; nothing changes when it runs."""
        if self._since is None:
            self._since = self._clock()

    def pause(self) -> bool:
        """Stop counting; tells whether it was running."""
        if self._since is None:
            return False
        self._elapsed += self._clock() - self._since
        self._since = None
        return True

    def lap(self) -> float:
        """Seconds since the last lap, and begin a new one; it runs or pauses as before."""
        running = self.pause()
        elapsed, self._elapsed = self._elapsed, 0.0
        if running:
            self.start()
        return elapsed


_TILE_PX = 192  # smaller images are enlarged by a whole factor, so that their labels can be read
_LABEL_PX = 20
_GAP_PX = 4
_CELL_PX = (92, 20)
_INK, _PAPER, _FULL = (32, 32, 32), (255, 255, 255), (178, 34, 34)


def strip(tiles: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Images of one sample side by side, each under its name.

    Args:
        tiles: name -> (C, h, w) in [0, 1]; what has not three channels is shown as its mean. All are enlarged without
            smoothing to the height of the largest, at least.

    Returns:
        (H, W, 3) uint8.
    """
    height = max(image.shape[-2] for image in tiles.values())
    height *= -(-_TILE_PX // height)
    arrays = [to_uint8(_as_rgb(_enlarge(image, height))) for image in tiles.values()]
    width = sum(array.shape[1] for array in arrays) + _GAP_PX * (len(arrays) - 1)
    canvas = Image.new("RGB", (width, height + _LABEL_PX), _PAPER)
    draw, left = ImageDraw.Draw(canvas), 0
    for name, array in zip(tiles, arrays, strict=True):
        canvas.paste(Image.fromarray(array), (left, _LABEL_PX))
        draw.text((left + 2, 2), name, fill=_INK, font=_font())
        left += array.shape[1] + _GAP_PX
    return np.asarray(canvas)


def heat_map(strengths: Mapping[str, float], title: str) -> np.ndarray:
    """Sites (rows, in the order of the forward pass) by branches (columns): how strong every branch is.

    Args:
        strengths: gate/<site> and modulation/<site>/<branch> -> strength. Every column is coloured from 0 to
            its largest.
        title: above the picture.

    Returns:
        (H, W, 3) uint8.
    """
    cells = {_cell(key): value for key, value in strengths.items()}
    sites, branches = (list(dict.fromkeys(pair[axis] for pair in cells)) for axis in (0, 1))
    (cell_width, cell_height), label_width = _CELL_PX, 10 + max(_width(name) for name in [*sites, "largest"])
    cell_width = max(cell_width, 12 + max(_width(name) for name in branches))
    width = max(label_width + cell_width * len(branches), _width(title)) + 8
    canvas = Image.new("RGB", (width, cell_height * (len(sites) + 2) + 6), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 2), title, fill=_INK, font=_font())
    for column, branch in enumerate(branches):
        left = label_width + cell_width * column
        largest = max(value for (_, name), value in cells.items() if name == branch)
        draw.text((left + 4, cell_height + 2), branch, fill=_INK, font=_font())
        for row, site in enumerate(sites, 2):
            draw.text((4, cell_height * row + 2), site, fill=_INK, font=_font())
            value = cells.get((site, branch))
            if value is not None:
                _draw_cell(draw, (left, cell_height * row), (cell_width, cell_height), value, largest)
    return np.asarray(canvas)


def _draw_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int], value: float, largest: float
) -> None:
    share = value / largest if largest > 0 else 0.0
    color = tuple(round(p + (f - p) * share) for p, f in zip(_PAPER, _FULL, strict=True))
    (left, top), (width, height) = corner, size
    draw.rectangle((left, top, left + width - 2, top + height - 2), fill=color, outline=(220, 220, 220))
    draw.text((left + 4, top + 2), f"{100 * value:.3g} %", fill=_PAPER if share > 0.6 else _INK, font=_font())


def _cell(key: str) -> tuple[str, str]:
    """Key of a strength -> (site, branch)."""
    kind, site, *branch = key.split("/")
    return site, branch[0] if kind == "modulation" else "image tokens"


def _enlarge(image: torch.Tensor, height: int) -> torch.Tensor:
    width = round(image.shape[-1] * height / image.shape[-2])
    return F.interpolate(image[None].float(), (height, width), mode="nearest")[0]


def _as_rgb(image: torch.Tensor) -> torch.Tensor:
    return image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=13)


def _width(text: str) -> int:
    return int(_font().getlength(text))


def scores(row: Mapping[str, object], metrics: Sequence[str]) -> str:
    """The numbers of one image, for a caption."""
    return ", ".join(f"{name} {row[name]:.4g}" for name in metrics)


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
        f"{row['key']} after {step} steps: {scores(row, [name for name in metrics if name in row])}" for row in rows
    ]
    strips = [wandb.Image(strip(tiles), caption=c) for tiles, c in zip(pictures, captions, strict=True)]
    table = wandb.Table(["step", "key", *metrics, "sr"])
    for row, tiles in zip(rows, pictures, strict=True):
        table.add_data(step, row["key"], *(row.get(name) for name in metrics), wandb.Image(to_uint8(tiles["sr"])))
    media = {"monitor/images": strips, "monitor/per_image": table}
    if strengths:
        title = f"share of a site's features that each branch makes, after {step} steps (one scale per column)"
        media["monitor/guidance_use"] = wandb.Image(heat_map(strengths, title), caption=title)
    return media


def _log(trainer: lightning.Trainer, numbers: dict[str, float], media: dict[str, Any] | None = None) -> None:
    # Lightning numbers its rows from 0: the step that has just been done is row global_step - 1.
    for logger in trainer.loggers:
        shown = media if media and isinstance(logger, WandbLogger) else {}
        logger.log_metrics({**numbers, **shown}, step=trainer.global_step - 1)
        logger.save()
