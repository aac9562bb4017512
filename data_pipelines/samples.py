"""Samples and how they become a batch; and the order in which training draws them.

A training set is a function draw -> sample, where draws are counted from the start of training. An epoch is so many
draws and nothing else; resuming is starting at another draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.images import from_uint8
from megasr.rng import numpy_generator


@dataclass(frozen=True)
class Sample:
    """One image: key unique among all draws, hq (H, W, 3) uint8, tags, exact maps name -> (C, H, W) in [0, 1]."""

    key: str
    hq: np.ndarray
    tags: str = ""
    maps: dict[str, torch.Tensor] = field(default_factory=dict)


class SampleSet(torch.utils.data.Dataset):
    """A map-style set: `make(index)` gives sample `index`. The number of draws of a training set has no end."""

    def __init__(self, make: Callable[[int], Sample], length: int) -> None:
        self.make = make
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.make(index)


class DrawSampler(torch.utils.data.DistributedSampler[int]):
    """Yields an epoch of draws from wherever training stands, dealt out to the processes like cards.

    It is a DistributedSampler so that Lightning does not put one of its own around it, which would deal twice. After a
    resume in mid-epoch it offers more draws than the epoch has left: Lightning counts batches and stops by itself.

    Args:
        position: number of samples that all processes together have consumed, asked when an epoch starts or is resumed.
        epoch_length: draws per epoch of all processes together, a multiple of world_size.
        rank: which process this is.
        world_size: number of processes.
    """

    def __init__(self, position: Callable[[], int], epoch_length: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(epoch_length), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.position = position

    def __iter__(self) -> Iterator[int]:
        start = self.position()
        return iter(range(start + self.rank, start + self.total_size, self.num_replicas))


class DrawLoader(torch.utils.data.DataLoader):
    """A loader of draws that Lightning can resume. Where training stands is Lightning's own batch count; what is kept
    here is what that count is counted in, because resuming with another batch size would repeat or skip draws."""

    def state_dict(self) -> dict[str, int]:
        """Batch size and epoch length."""
        return {"batch_size": self.batch_size, "epoch_length": len(self.sampler)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Check that the checkpoint was counted in the same units.

        Raises:
            UsageError: the batch size or the epoch length is another one.
        """
        if state != self.state_dict():
            raise UsageError(
                f"cannot resume: the checkpoint was made with {state}, the data module has {self.state_dict()}; "
                "draws would be repeated or skipped"
            )


def collate(samples: Sequence[Sample]) -> SRBatch:
    """Samples of one size -> batch with keys, hq, tags and maps."""
    batch = SRBatch(
        keys=[sample.key for sample in samples],
        hq=from_uint8(np.stack([sample.hq for sample in samples])),
        tags=[sample.tags for sample in samples],
    )
    if samples[0].maps:
        batch["maps"] = {name: torch.stack([sample.maps[name] for sample in samples]) for name in samples[0].maps}
    return batch


def random_crop(image: np.ndarray, size_px: int, seed: int, *key: int | str) -> np.ndarray:
    """A random (size_px, size_px) crop of (H, W, 3), flipped left to right half of the time; a function of the key."""
    rng = numpy_generator(seed, "crop", *key)
    top, left = (int(rng.integers(n - size_px + 1)) for n in image.shape[:2])
    crop = image[top : top + size_px, left : left + size_px]
    return crop[:, ::-1] if rng.random() < 0.5 else crop
