"""ProtocolMetrics: measure `megasr test` on any number of devices, every image once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError, metric_key, split_names
from megasr.evaluation.evaluator import (
    BENCHMARK_IMAGES,
    Evaluation,
    Evaluator,
    check_keys,
    gather_vectors,
    write_evaluation,
)
from megasr.evaluation.metrics import caveat, weight_hashes
from megasr.evaluation.protocol import get_protocol
from megasr.files import PART, file_sha256, write_whole
from megasr.images import to_uint8, write_png
from megasr.provenance import provenance

RESULT, TABLE = "test.json", "test.csv"
PICTURES = ("sr", "lq", "hq")
MARK = ".{}_of_test"  # without this file, the folder of pictures is somebody else's


class ProtocolMetrics(lightning.Callback):
    """Measure the sr of `megasr test` under a protocol; log test/<metric>, write the evaluation to the run's folder.

    test.json holds the evaluation (megasr.evaluation.evaluator), test.csv its rows, sr/<key>.png what was measured,
    lq/ and hq/ what it was made of and compared with; a benchmark set has them in a folder of its name there. A test
    replaces the earlier one and its pictures. The data module must name its images (SRDataModule.eval_keys).

    Process i % processes measures image i, as DistributedSampler deals them. The images that the sampler repeats, so
    that FSDP's collectives match, are restored and not measured again. With data.batch_size 1 the numbers are the same
    to the last bit on any number of processes; else a pixel may be rounded to the next of the 256 levels.

    Args:
        protocol: name of the evaluation protocol.
        metrics: which of its metrics are computed, at least one; None takes all that can be.
        weights_dir: folder where the weights of metrics are looked for first.
        missing: whether a metric whose weights are missing is skipped or an error.
        save_images: write sr/<key>.png, and lq and hq beside it.

    Raises:
        UsageError: the protocol or a metric is unknown, or no metric is named.
    """

    config: Mapping[str, Any] | None = None  # the resolved configuration, set by `megasr test`

    def __init__(
        self,
        protocol: str = "weight-free-v1",
        metrics: list[str] | str | None = None,
        weights_dir: str | None = None,
        missing: Literal["skip", "error"] = "error",
        save_images: bool = True,
    ) -> None:
        self.protocol = get_protocol(protocol)
        names = self.protocol.metric_names if metrics is None else split_names(metrics)
        if not names:
            raise UsageError("evaluation.metrics is empty: name some, or leave it out to take all that can be computed")
        self.specs = [self.protocol.metric(name) for name in names]
        self.metrics = None if metrics is None else list(names)
        self.missing, self.save_images = missing, save_images
        self.weights_dir = None if weights_dir is None else Path(weights_dir)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Silence Lightning's advice to test on one device: every image counts once here."""
        warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Check all that can be checked before an image is restored, and remove the earlier test's results.

        Raises:
            UsageError: keys are repeated or no file names, images would be left out, no metric can be computed, or a
                folder of pictures was not written by a test.
            MegaSRError: weights of a metric are missing, or the run's folder cannot be used.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "eval_keys"):
            raise UsageError("test measures whole sets: give it a data module that names its images (eval_keys)")
        if sum(trainer.num_test_batches) < len(trainer.test_dataloaders):
            raise UsageError("trainer.limit_test_batches leaves images out: take fewer with data.eval_samples")
        keys = data.eval_keys()
        # log_dir asks all processes: not on rank 0 alone.
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / (getattr(data, "benchmark", None) or "")
        for key in keys if self.save_images else []:
            picture_path(self._folder, key)
        for pictures in (self._folder / kind for kind in (PICTURES if self.save_images else PICTURES[:1])):
            if pictures.is_symlink() or (any(pictures.glob("*")) and not _is_ours(pictures)):
                raise UsageError(
                    f"a test clears {pictures} first, and this one was not written by a test: move it away, or give "
                    "another --trainer.default_root_dir"
                )
        if self.config is not None and trainer.ckpt_path is None:
            rank_zero_warn(
                "no --ckpt_path: this measures an untrained adapter; name what a fit saved: --ckpt_path FILE"
            )
        self._evaluator = evaluator = self._make_evaluator(pl_module.device, data.has_hq)
        check_keys(keys, keys)
        self._index = {key: index for index, key in enumerate(keys)}
        self._measured: dict[str, torch.Tensor] = {}
        self._provenance = _provenance(trainer, pl_module, evaluator, self.config)
        if trainer.is_global_zero:
            _remove_earlier(self._folder, PICTURES if self.save_images else ())
        trainer.strategy.barrier()

    def _make_evaluator(self, device: torch.device, has_hq: bool) -> Evaluator:
        # On a CPU formulas give the same as `megasr evaluate`, to the last bit; networks are too slow for it.
        has_network = any(spec.weights for spec in self.specs)
        evaluator = Evaluator(
            self.protocol,
            device if has_network else "cpu",
            metrics=self.metrics,
            weights_dir=self.weights_dir,
            missing=self.missing,
            has_hq=has_hq,
        )
        skipped = "; ".join(f"{name}: {why}" for name, why in evaluator.skipped.items())
        if not evaluator.width:
            raise UsageError(f"no metric of {self.protocol.name} can be computed: {skipped}")
        if skipped:
            rank_zero_info(f"not measured: {skipped}")
        return evaluator

    def on_test_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: SRBatch, *_: Any
    ) -> None:
        """Measure and write this process's images of a batch; `outputs` is the sr that test_step returned.

        Raises:
            MegaSRError: an image is not of the set, sr is not finite, or it cannot be written.
        """
        if strangers := [key for key in batch["keys"] if key not in self._index]:
            raise MegaSRError(f"not in the evaluation set of the data module: {', '.join(strangers)}")
        rank, processes = trainer.global_rank, trainer.world_size
        own = [i for i, key in enumerate(batch["keys"]) if self._index[key] % processes == rank]
        if not own:
            return
        keys, sr = [batch["keys"][i] for i in own], outputs[own].float()
        hq = batch["hq"][own].float() if self._evaluator.has_hq else None
        self._measured |= zip(keys, self._evaluator.vectors(sr, hq, keys), strict=True)
        if not self.save_images:
            return
        pictures = {"sr": sr, "lq": batch["lq"][own].float()} | ({} if hq is None else {"hq": hq})
        for kind, images in pictures.items():
            for key, image in zip(keys, images, strict=True):
                write_png(to_uint8(image), picture_path(self._folder, key, kind))

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Gather, log and write.

        Raises:
            MegaSRError: an image was not measured, or a file cannot be written.
        """
        from megasr.evaluation.tables import rows_csv  # pandas, which a training that tests nothing need not import

        keys = tuple(self._index)
        vectors = gather_vectors(self._measured, keys)
        data = getattr(trainer.datamodule, "benchmark", None)  # type: ignore[attr-defined]
        evaluation = self._evaluator.evaluation(vectors, keys, data=data, provenance=self._provenance)
        values = {metric_key("test", name): value for name, value in (evaluation.means | evaluation.set_values).items()}
        # Every process has the same numbers. The maximum of equal ones is exact, their mean is not.
        pl_module.log_dict(values, sync_dist=True, reduce_fx="max")
        if not trainer.is_global_zero:
            return
        write_whole(self._folder / TABLE, rows_csv(evaluation).encode("utf-8", "surrogateescape"))
        write_evaluation(evaluation, self._folder / RESULT)
        if evaluation.set_values and (text := caveat(len(evaluation.rows))):
            rank_zero_warn(text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(_table(evaluation), step=trainer.global_step)
        rank_zero_info(f"wrote {self._folder / RESULT}")


def _table(evaluation: Evaluation) -> dict[str, Any]:
    """One row per image for W&B, and their number: RunWandbLogger logs tables beside numbers."""
    import wandb

    rows = [list(row.values()) for row in evaluation.rows]
    return {"test/image_count": len(rows), "test/images": wandb.Table(["key", *evaluation.means], rows)}


def picture_path(folder: Path, key: str, kind: str = "sr") -> Path:
    """Where the sr, lq or hq of an image lies in the folder of a run.

    Raises:
        UsageError: the key cannot be the name of a file there.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise UsageError(f"image {key!r} cannot be written as {kind}/{key}.png: set evaluation.save_images false")
    return folder / kind / f"{key}.png"


def _is_ours(pictures: Path) -> bool:
    return pictures.with_name(MARK.format(pictures.name)).exists() and not pictures.is_symlink()


def _remove_earlier(folder: Path, kinds: Iterable[str]) -> None:
    """Remove an earlier test's numbers and pictures, also where it was interrupted; other files stay.

    Args:
        folder: of the run.
        kinds: which pictures are to be written now.
    """
    try:
        for path in (folder / RESULT, folder / TABLE):
            path.unlink(missing_ok=True)
        for pictures in filter(_is_ours, (folder / kind for kind in PICTURES)):
            for parent, _, files in os.walk(pictures, topdown=False):  # follows no links
                for name in files:
                    if name.endswith((".png", PART)):
                        Path(parent, name).unlink()
                if not os.listdir(parent):
                    os.rmdir(parent)
        for kind in kinds:
            write_whole(folder / MARK.format(kind), b"the pictures beside this file were written by `megasr test`\n")
    except OSError as error:
        raise MegaSRError(f"cannot replace {error.filename or folder}: {error.strerror or error}") from error


def _provenance(
    trainer: lightning.Trainer,
    pl_module: lightning.LightningModule,
    evaluator: Evaluator,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Where the numbers come from: config, checkpoint, seed, weights of metrics, and how many benchmark images."""
    images = getattr(trainer.datamodule, "benchmark_images", None)  # type: ignore[attr-defined]
    text = json.dumps(config or {"model": dict(pl_module.hparams)}, sort_keys=True, default=str)
    return provenance(
        str(pl_module.device),
        weights=weight_hashes(evaluator.weights, evaluator.weights_dir),
        seed=getattr(pl_module, "seed", None),
        config=hashlib.sha256(text.encode()).hexdigest()[:16],
        checkpoint=_checkpoint(trainer.ckpt_path) if trainer.is_global_zero else None,
        **({} if images is None else {BENCHMARK_IMAGES: list(images)}),
    )


def _checkpoint(path: str | Path | None) -> dict[str, str | None] | None:
    """Name and sha256 of a checkpoint; the folder of a sharded one has no sha256."""
    if path is None:
        return None
    return {"path": str(path), "sha256": file_sha256(Path(path)) if Path(path).is_file() else None}
