"""The first images of the evaluation set, restored again and again during training: the same in every run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning
import torch

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.training.callbacks import EMA


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
