"""A set that processes cannot share evenly: Lightning repeats some of its images, so that all take as many steps."""

from __future__ import annotations

import lightning
import torch


def mean_of_counted(trainer: lightning.Trainer, batch_index: int, losses: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The mean over those images of a validation batch that are no repetition, and how many they are; 0 of none.

    Args:
        trainer: that of the validation, which has one loader.
        batch_index: number of the batch in this process.
        losses: (any, B).
    """
    count = counted(trainer.val_dataloaders, batch_index, losses.shape[1])
    return losses[:, :count].sum() / max(1, count * len(losses)), count


def counted(loader: object, batch_index: int, size: int) -> int:
    """How many images of a batch of so many count: those after them fill it up, and other processes have them too."""
    if not isinstance(loader, torch.utils.data.DataLoader) or loader.batch_size is None:
        return size
    sampler = loader.sampler
    if not isinstance(sampler, torch.utils.data.DistributedSampler):
        return size
    first, step = batch_index * loader.batch_size * sampler.num_replicas + sampler.rank, sampler.num_replicas
    return len(range(first, min(len(loader.dataset), first + size * step), step))  # type: ignore[arg-type]
