"""A small prior in the real format, small batches and a quiet trainer."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from unittest import mock

import lightning
import torch

from megasr.batch import SRBatch
from megasr.networks.config import AdapterConfig
from megasr.prior import Prior, load_prior, save_prior
from megasr.training.config import SamplerConfig
from megasr.training.module import FrozenParts, MegaSRModule
from tests.helpers.networks import random_prior


class _CopiedParts(FrozenParts):
    """Reads a prior once per process, and copies all of it but the vocabulary, which takes longer than the networks."""

    def prior(self, source: str, text_states: str | None = None) -> Prior:
        prior = _read_prior(source, text_states)
        shared = [part.tokenizer for part in prior.modules() if hasattr(part, "tokenizer")]
        return copy.deepcopy(prior, {id(tokenizer): tokenizer for tokenizer in shared})


_read_prior = functools.cache(load_prior)


@functools.cache
def prior_folder(seed: int = 0) -> str:
    """A diffusers folder with a random tiny prior, written once per process."""
    folder = Path(tempfile.mkdtemp(prefix="megasr-prior-"))
    save_prior(random_prior(seed), folder)
    return str(folder)


def make_module(**changes: object) -> MegaSRModule:
    """A module on the random prior; keyword arguments replace the constructor's."""
    defaults = {
        "prior": prior_folder(),
        "adapter": AdapterConfig(guidance=("canny",), saft_width=8),
        "sampler": SamplerConfig(num_steps=2),
    }
    with mock.patch.object(MegaSRModule, "parts", _CopiedParts()):
        return MegaSRModule(**{**defaults, **changes})


def make_batch(size: int = 2, seed: int = 0, side_px: int = 32) -> SRBatch:
    """hq and lq of random images, with tags and tokens of every kind."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    return SRBatch(
        keys=[f"image-{i}" for i in range(size)],
        hq=rand(size, 3, side_px, side_px),
        lq=rand(size, 3, side_px // 4, side_px // 4),
        tags=[f"brick wall {i}" for i in range(size)],
        image_tokens=rand(size, 5, 1280),
        representation=rand(size, 6, 512),
        degradation=[{"name": "made up"}] * size,
    )


def take(batch: SRBatch, indices: list[int]) -> SRBatch:
    """Some samples of a batch."""
    return SRBatch(
        **{k: [v[i] for i in indices] if isinstance(v, list) else v[indices] for k, v in batch.items()}  # type: ignore
    )


class Repeat(torch.utils.data.IterableDataset):
    """The same batch without end."""

    def __init__(self, batch: SRBatch) -> None:
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


def fit(module: lightning.LightningModule, data: object, steps: int, **trainer: object) -> lightning.Trainer:
    """Train for `steps` steps on a batch or a data module."""
    settings = {
        "max_steps": steps,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    result = lightning.Trainer(**{**settings, **trainer})
    if isinstance(data, dict):
        result.fit(module, torch.utils.data.DataLoader(Repeat(data), batch_size=None), ckpt_path=None)
    else:
        result.fit(module, datamodule=data, ckpt_path=None)
    return result


class LossCurve(lightning.Callback):
    """Remembers the training loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, *unused):
        self.losses.append(float(outputs["loss"]))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
