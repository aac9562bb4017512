"""A set that processes cannot share evenly: Lightning repeats some of its images, so that all take as many steps."""

from __future__ import annotations

import lightning
import torch


def mean_without_repeated(trainer: lightning.Trainer | None, batch_index: int, losses: torch.Tensor) -> torch.Tensor:
    """What a validation batch adds to the mean over the set, in which every image counts once.

    Averaged over the batches of all processes, by their sizes, it is that mean. (Lightning cannot average over batches
    that count less than others: it divides the numbers of images by that of the processes, and rounds.)

    Args:
        trainer: that of the validation, which has one loader; None counts all.
        batch_index: number of the batch in this process.
        losses: (any, B).
    """
    loader = None if trainer is None else trainer.val_dataloaders
    sampler = getattr(loader, "sampler", None)
    if trainer is None or loader is None or not isinstance(sampler, torch.utils.data.DistributedSampler):
        return losses.mean()
    ranks, images = sampler.num_replicas, len(loader.dataset)
    first = batch_index * loader.batch_size * ranks + sampler.rank
    counted = len(range(first, min(images, first + losses.shape[1] * ranks), ranks))
    shown = min(trainer.num_val_batches[0] * loader.batch_size, len(sampler)) * ranks
    return losses[:, :counted].sum() / losses.numel() * (shown / min(shown, images))
