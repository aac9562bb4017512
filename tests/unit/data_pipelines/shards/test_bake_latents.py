"""Baked latents of hq: what the prior's VAE would have made in training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from data_pipelines.shards.bake import bake
from data_pipelines.shards.baked import BakeOptions
from megasr.commands.shards import load_latents
from megasr.errors import UsageError
from megasr.prior import load_prior
from tests.helpers.shard_sets import shard_module, train_and_eval


def test_latents_are_those_that_training_would_have_made(tmp_path: Path) -> None:
    shards, prior = train_and_eval(tmp_path), load_prior()
    bake(
        shards, "latents", BakeOptions("bicubic", 4, 32, latents="tiny"), 1, load_latents=partial(load_latents, "tiny")
    )
    batch = next(iter(shard_module(shards, baked="latents").train_dataloader()))
    torch.testing.assert_close(batch["latents"], prior.encode(batch["hq"]))
    mixed = shard_module(shards, baked="latents", baked_share=0.5, train_samples=30).train_dataloader()
    found = [(all(key.count("/") == 2 for key in batch["keys"]), "latents" in batch) for batch in mixed]
    assert all(baked == kept for baked, kept in found) and len({kept for _, kept in found}) == 2
    with pytest.raises(UsageError, match="latents are '', and there is an encoder"):
        bake(shards, "other", BakeOptions("bicubic", 4, 32), 1, load_latents=partial(load_latents, "tiny"))
