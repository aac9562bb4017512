"""Samples, where they come from, how they are cropped, and how they become batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from data_pipelines.degradations.presets import Degradation
from megasr.batch import SRBatch
from megasr.errors import MegaSRError, UsageError
from megasr.images import from_uint8
from megasr.rng import numpy_generator


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    Args:
        key: its name, unique in a batch.
        hq: (H, W, 3) uint8; empty for images without ground truth.
        tags: comma-separated, "" when unknown.
        maps: guidance name -> (C, H, W) float32 in [0, 1].
        lq: (3, h, w) float32 in [0, 1] when it exists already: a real pair, a baked variant, or made in the worker.
        degradation: the parameters that made lq.
        image_tokens: (N, D) CLIP vision tokens of lq, when baked.
        latents: (C, h, w) float32, the VAE's latents of hq, when baked or encoded beforehand.
        patch_tags: the tag of each part of hq, row by row; empty when not asked for.
        skipped: (key, reason, damaged) of every unusable image that this sample replaces.
    """

    key: str
    hq: np.ndarray
    tags: str = ""
    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    lq: torch.Tensor | None = None
    degradation: dict[str, Any] | None = None
    image_tokens: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    patch_tags: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str, bool], ...] = ()


class UnusableSampleError(MegaSRError):
    """One image cannot be used. Training goes on without it and counts it.

    Args:
        key: which image.
        reason: a short phrase, the same for all images with this problem: they are counted by it.
        detail: the rest of the message.
        damaged: False for what a filter dropped; only damage counts against the error budget.
    """

    def __init__(self, key: str, reason: str, detail: str = "", damaged: bool = True) -> None:
        super().__init__(key, reason, detail, damaged)  # so that it can be pickled
        self.key, self.reason, self.detail, self.damaged = key, reason, detail, damaged

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class EvalSet(Protocol):
    """Images of an evaluation, by number; the names are known without reading the images."""

    def __len__(self) -> int:
        """Number of images."""

    def key(self, index: int) -> str:
        """The key of read(index)."""

    def read(self, index: int) -> Sample:
        """Image `index`. Raises UnusableSampleError when this one cannot be used."""

    def tags(self, index: int) -> str:
        """See Source.tags."""


class Source(Protocol):
    """Whole images by number, and the order in which training goes through them."""

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the order depends on; a resumed run needs the same."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> Sample:
        """Image `index`, whole. Raises UnusableSampleError when this one cannot be used."""

    def tags(self, index: int) -> str:
        """The tags of read(index), without its image.

        Raises:
            UnusableSampleError: they cannot be read.
            UsageError: only the image tells.
        """

    def order(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`, a function of (seed, draw): each image once before any comes again."""


class NamedSource(Source, EvalSet, Protocol):
    """A source that can also be evaluated on."""


class SampleSet(torch.utils.data.Dataset):
    """A map-style set: `make(index)` gives sample `index`. The indices of a training set are draws, without end."""

    def __init__(self, make: Callable[[int], object], length: int) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> object:
        """Sample `index`, or the error itself: raised in a worker, it would become a page of traceback."""
        try:
            return self.make(index)
        except (MegaSRError, UsageError) as error:
            return error


class DrawSampler(torch.utils.data.DistributedSampler[int]):
    """Yields an epoch of draws, starting from the number of samples consumed so far, interleaved over the processes.

    It is a DistributedSampler so that Lightning does not wrap it in one. After a resume within an epoch it yields more
    draws than the epoch has left: Lightning counts batches and stops by itself.

    Args:
        position: samples that all processes together have consumed; called when an epoch starts or resumes.
        epoch_length: draws per epoch of all processes together, a multiple of world_size.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, position: Callable[[], int], epoch_length: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(epoch_length), world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.position = position

    def __iter__(self) -> Iterator[int]:
        start = self.position()
        return iter(range(start + self.rank, start + self.total_size, self.num_replicas))


class SampleLoader(torch.utils.data.DataLoader):
    """A loader of a SampleSet that raises a worker's error as it was raised there."""

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if isinstance(batch, Exception):
                raise batch
            yield batch


class DrawLoader(SampleLoader):
    """A loader with an (empty) state, so that Lightning resumes within an epoch; the data module has the position."""

    def state_dict(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing."""


def collate_or_error(samples: Sequence[Sample | Exception]) -> SRBatch | Exception:
    """collate for SampleLoader: the first error, when there is one."""
    errors = [sample for sample in samples if isinstance(sample, Exception)]
    try:
        return errors[0] if errors else collate([sample for sample in samples if isinstance(sample, Sample)])
    except UsageError as error:
        return error


def collate(samples: Sequence[Sample]) -> SRBatch:
    """Samples of one size -> batch, with those maps, tokens and latents that every sample has.

    Raises:
        UsageError: only some samples bring lq.
    """
    batch = SRBatch(keys=[sample.key for sample in samples], tags=[sample.tags for sample in samples])
    hq, lq = np.stack([sample.hq for sample in samples]), [s.lq for s in samples if s.lq is not None]
    if lq and len(lq) < len(samples):
        raise UsageError("only some samples of a batch bring lq: mixing them with others needs data.backend cpu")
    if lq:
        batch["lq"] = torch.stack(lq)
    if hq.size or not lq:
        batch["hq"] = from_uint8(hq)
    if shared := [name for name in samples[0].maps if all(name in sample.maps for sample in samples)]:
        batch["maps"] = {name: torch.stack([sample.maps[name] for sample in samples]) for name in shared}
    if all(sample.degradation is not None for sample in samples):
        batch["degradation"] = [sample.degradation or {} for sample in samples]
    for name in ("image_tokens", "latents"):
        values = [value for sample in samples if (value := getattr(sample, name)) is not None]
        if len(values) == len(samples):
            batch[name] = torch.stack(values).float()  # type: ignore[literal-required]
    if all(sample.patch_tags for sample in samples):
        batch["patch_tags"] = [sample.patch_tags for sample in samples]
    if any(sample.skipped for sample in samples):
        batch["skipped"] = [sample.skipped for sample in samples]
    return batch


def degrade(sample: Sample, degradation: Degradation, seed: int, usm_target: bool = False) -> Sample:
    """The sample with lq made by the `cpu` back end, and its parameters; with usm_target, hq is sharpened first."""
    hq = sample.hq
    if usm_target:
        from data_pipelines.degradations.cpu import sharpen

        hq = sharpen(hq)
    (params,) = degradation.sample_params(seed, [sample.key])
    return replace(sample, hq=hq, lq=degradation.apply_image(hq, params), degradation=params)


def names_fingerprint(names: Iterable[str]) -> str:
    """16 hexadecimal digits of a list of names."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def crop_sample(sample: Sample, size_px: int, seed: int, *key: int | str) -> Sample:
    """The same random crop of hq, lq and maps, mirrored half of the time; a function of (seed, key).

    Args:
        sample: with lq, the corner is drawn in pixels of lq.
        size_px: height and width of hq afterwards, a multiple of the scale factor.
        seed: of the draw.
        key: see megasr.rng.

    Raises:
        UnusableSampleError: hq is smaller than the crop.
    """
    height, width = sample.hq.shape[:2]
    if min(height, width) < size_px:
        raise UnusableSampleError(sample.key, f"smaller than {size_px} px", f"{width}x{height} px", damaged=False)
    scale = _scale(sample)
    rng = numpy_generator(seed, "crop", *key)
    top, left = (int(rng.integers((n - size_px) // scale + 1)) * scale for n in (height, width))
    crop = _cut(sample, top, left, size_px)
    return _mirrored(crop) if rng.random() < 0.5 else crop


def center_crop_sample(sample: Sample, size_px: int) -> Sample:
    """The centre of hq, lq and maps, its corner on a pixel of lq.

    Raises:
        UsageError: hq is smaller than the crop: evaluation leaves nothing out.
    """
    height, width = sample.hq.shape[:2]
    if min(height, width) < size_px:
        raise UsageError(f"{sample.key}: {width}x{height} px is smaller than the evaluation's crop of {size_px} px")
    scale = _scale(sample)
    top, left = ((n - size_px) // 2 // scale * scale for n in (height, width))
    return _cut(sample, top, left, size_px)


def _scale(sample: Sample) -> int:
    return 1 if sample.lq is None else sample.hq.shape[0] // sample.lq.shape[-2]


def _cut(sample: Sample, top: int, left: int, size_px: int) -> Sample:
    def window(image: torch.Tensor, scale: int) -> torch.Tensor:
        y, x, size = top // scale, left // scale, size_px // scale
        return image[:, y : y + size, x : x + size].contiguous()

    hq, maps = sample.hq[top : top + size_px, left : left + size_px], sample.maps.items()
    lq = None if sample.lq is None else window(sample.lq, _scale(sample))
    return replace(sample, hq=hq, maps={name: window(values, 1) for name, values in maps}, lq=lq)


def _mirrored(sample: Sample) -> Sample:
    maps = {name: values.flip(-1) for name, values in sample.maps.items()}
    for name in maps:
        if name.endswith("normal"):  # x points the other way
            maps[name] = torch.cat([1 - maps[name][:1], maps[name][1:]])
    return replace(sample, hq=sample.hq[:, ::-1], maps=maps, lq=None if sample.lq is None else sample.lq.flip(-1))
