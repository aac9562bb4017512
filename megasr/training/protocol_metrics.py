"""ProtocolMetrics: `megasr test` on any number of devices, every image measured once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator, check_keys, gather_vectors
from megasr.evaluation.metrics import caveat, weight_hashes
from megasr.evaluation.protocol import get_protocol
from megasr.evaluation.result import Evaluation, write_evaluation
from megasr.evaluation.tables import BENCHMARK_IMAGES, rows_csv
from megasr.files import PART, file_sha256, write_whole
from megasr.images import to_uint8, write_png
from megasr.names import split_names
from megasr.provenance import provenance

RESULT, TABLE, PICTURES = "test.json", "test.csv", "sr"
_MARK = ".sr_of_test"  # sr/ of another origin is never cleared
_UNTRAINED = "no --ckpt_path: this measures an adapter that was not trained; name what a fit saved: --ckpt_path FILE"
# What a killed process was writing is a part of one.
_PICTURE = re.compile(rf"\.png(\.\d+{re.escape(PART)})?$")


class ProtocolMetrics(lightning.Callback):
    """Measures the sr of `megasr test` under a protocol: means to the logger, the evaluation to the run's folder.

    test.json holds the evaluation (megasr.evaluation.result), test.csv its rows, and sr/<key>.png what was measured.
    Those of a benchmark set lie in a folder of its own, <name of the set>/, there. A test replaces the earlier one as a
    whole: it clears sr/, and refuses to where sr/ holds anything but pictures. The data module must name its images
    before any is restored (SRDataModule.eval_keys).

    Image i is measured by process i % processes, which is where Lightning's sampler puts it. That sampler repeats
    images until every process has equally many, so that strategies that communicate in every forward pass (FSDP) do
    not wait for a process that has finished. The repetitions are restored and passed over, not compared: a network
    rounds differently in a batch of another size. With data.batch_size 1 the numbers are the same, to the last bit, on
    any number of processes; else a pixel may fall on the next of the 256 levels.

    Args:
        protocol: name of the evaluation protocol.
        metrics: which of its metrics are taken, at least one; None takes all that can be.
        weights_dir: folder where the weights of metrics are looked for first.
        missing: whether a metric whose weights are missing is skipped or refused.
        save_images: write sr/<key>.png.

    Raises:
        UsageError: the protocol or a metric is unknown, or no metric is named.
    """

    config: Mapping[str, Any] | None = None  # the resolved configuration, where there is one: in `megasr test`

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
            raise UsageError("evaluation.metrics is empty: name some, or leave it out to take all that can be taken")
        self.specs = [self.protocol.metric(name) for name in names]
        self.metrics = None if metrics is None else list(names)
        self.missing, self.save_images = missing, save_images
        self.weights_dir = None if weights_dir is None else Path(weights_dir)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Silence Lightning's advice to test on one device, so that every image counts once: here it does."""
        warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Check everything that can be before an image is restored, and take away what an earlier test left.

        Raises:
            UsageError: names of images are repeated or cannot be names of files, images would be left out, no metric
                can be taken, or sr/ holds what no test wrote.
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
        _check_clearable(self._folder)
        if self.config is not None and trainer.ckpt_path is None:
            rank_zero_warn(_UNTRAINED)
        self._evaluator = evaluator = self._make_evaluator(pl_module.device, data.has_hq)
        check_keys(keys, keys)
        self._index = {key: index for index, key in enumerate(keys)}
        self._measured: dict[str, torch.Tensor] = {}
        self._provenance = _provenance(trainer, pl_module, evaluator, self.config)
        if trainer.is_global_zero:
            _remove_earlier(self._folder)
        trainer.strategy.barrier()

    def _make_evaluator(self, device: torch.device, has_hq: bool) -> Evaluator:
        # On a CPU formulas give what `megasr evaluate` gives there, to the last bit; networks are too slow for it.
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
            raise UsageError(f"no metric of {self.protocol.name} can be taken: {skipped}")
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
        for key, image in zip(keys, sr if self.save_images else [], strict=self.save_images):
            write_png(to_uint8(image), picture_path(self._folder, key))

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Gather, log and write.

        Raises:
            MegaSRError: an image was not measured, or a file cannot be written.
        """
        keys = tuple(self._index)
        vectors = gather_vectors(self._measured, keys)
        data = getattr(trainer.datamodule, "benchmark", None)  # type: ignore[attr-defined]
        found = self._evaluator.evaluation(vectors, keys, data=data, provenance=self._provenance)
        values = {f"test/{name}": value for name, value in (found.means | found.set_values).items()}
        # Every process has the same numbers. The maximum of equal ones is exact, their mean is not.
        pl_module.log_dict(values, sync_dist=True, reduce_fx="max")
        if not trainer.is_global_zero:
            return
        write_whole(self._folder / TABLE, rows_csv(found).encode("utf-8", "surrogateescape"))
        write_evaluation(found, self._folder / RESULT)
        if found.set_values and (text := caveat(len(found.rows))):
            rank_zero_warn(text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_metrics(_table(found), step=trainer.global_step)
        rank_zero_info(f"wrote {self._folder / RESULT}")


def _table(evaluation: Evaluation) -> dict[str, Any]:
    """One row per image for W&B, and their number: tables are logged beside a number."""
    import wandb

    rows = [list(row.values()) for row in evaluation.rows]
    return {"test/image_count": len(rows), "test/images": wandb.Table(["key", *evaluation.means], rows)}


def picture_path(folder: Path, key: str) -> Path:
    """Where the sr of an image lies in the folder of a run.

    Raises:
        UsageError: the key cannot be the name of a file there.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise UsageError(f"image {key!r} cannot be written as {PICTURES}/{key}.png: set evaluation.save_images false")
    return folder / PICTURES / f"{key}.png"


def _check_clearable(run: Path) -> None:
    """Check, while another process may clear it, that sr/ was written by a test and holds pictures alone.

    Raises:
        UsageError: clearing it would take what no test wrote.
    """
    pictures = run / PICTURES
    stray = [pictures] if pictures.is_symlink() or pictures.is_file() else []
    for folder, folders, files in os.walk(pictures):
        stray += [path for name in folders if (path := Path(folder, name)).is_symlink()]
        stray += [path for name in files if (path := Path(folder, name)).is_symlink() or not _PICTURE.search(name)]
    if not (run / _MARK).exists():
        stray += list(pictures.glob("*"))[:1]
    if stray:
        raise UsageError(f"a test clears {pictures} first, and {stray[0]} is not what one wrote: move it away")


def _remove_earlier(folder: Path) -> None:
    """Take away an earlier test's numbers and its pictures, also where it was interrupted.

    What is left of other images would be measured with those of this test, or keep them from being paired.
    """
    try:
        for path in (folder / RESULT, folder / TABLE):
            path.unlink(missing_ok=True)
        if (folder / PICTURES).exists():
            shutil.rmtree(folder / PICTURES)  # follows no links
        write_whole(folder / _MARK, b"the pictures beside this file were written by `megasr test`\n")
    except OSError as error:
        raise MegaSRError(f"cannot replace {error.filename or folder}: {error.strerror or error}") from error


def _provenance(
    trainer: lightning.Trainer,
    pl_module: lightning.LightningModule,
    evaluator: Evaluator,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Where the numbers come from: what was trained how, restored with which seed, and what measured it."""
    text = json.dumps(config or {"model": dict(pl_module.hparams)}, sort_keys=True, default=str)
    return provenance(
        str(pl_module.device),
        weights=weight_hashes(evaluator.weights, evaluator.weights_dir),
        seed=getattr(pl_module, "seed", None),
        config=hashlib.sha256(text.encode()).hexdigest()[:16],
        checkpoint=_checkpoint(trainer.ckpt_path) if trainer.is_global_zero else None,
        **_benchmark_images(trainer),
    )


def _benchmark_images(trainer: lightning.Trainer) -> dict[str, Any]:
    """How many of the images of a benchmark set are measured; tables say it where it is a part."""
    images = getattr(trainer.datamodule, "benchmark_images", None)  # type: ignore[attr-defined]
    return {} if images is None else {BENCHMARK_IMAGES: list(images)}


def _checkpoint(path: str | Path | None) -> dict[str, str | None] | None:
    """Name and sha256 of what was loaded. A folder (of a sharded checkpoint) or an address is named alone."""
    if path is None:
        return None
    return {"path": str(path), "sha256": file_sha256(Path(path)) if Path(path).is_file() else None}
