"""Baked maps of networks: a set knows which weights made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.shards.bake import bake
from data_pipelines.shards.baked import BakeOptions
from megasr.errors import UsageError
from megasr.guidance.extract import extract_guidance
from megasr.guidance.registry import resolve_guidance
from megasr.guidance.sources import ExtractorConfig, Networks
from tests.helpers.shard_sets import shard_module, train_and_eval


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return train_and_eval(tmp_path)


def test_baked_maps_say_which_weights_made_them(shards: Path) -> None:
    """Other weights make other maps: they do not go into the same set, and one that is not used is an error."""
    options = BakeOptions("bicubic", 4, 32, maps=("depth",))
    bake(shards, "deep", options, 1, sources={"depth": "tiny"})
    for batch in shard_module(shards, baked="deep").train_dataloader():
        stored = {"keys": batch["keys"], "lq": batch["lq"]}
        networks = Networks(ExtractorConfig({"depth": "tiny"}))
        expected = extract_guidance(stored, resolve_guidance(["depth"]), 4, networks)["depth"]
        assert (expected - batch["maps"]["depth"]).abs().max() <= 0.5 / 255 + 1e-4
    with pytest.raises(UsageError, match="begun as another set: extractors was"):
        bake(shards, "deep", options, 2)
    with pytest.raises(UsageError, match="names hed, which"):
        bake(shards, "other", options, 1, sources={"hed": "tiny"})
