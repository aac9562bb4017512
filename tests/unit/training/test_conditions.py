"""What a module takes from extractors and taggers, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megasr.errors import UsageError
from megasr.guidance.extract import ExtractorConfig
from megasr.images import upsample_lq
from megasr.networks.config import AdapterConfig
from megasr.semantics.tags import TaggerConfig
from megasr.training.module import MegaSRModule
from tests.helpers.training import fit, make_batch, make_module


def with_guidance(**changes: Any) -> MegaSRModule:
    return make_module(adapter=AdapterConfig(guidance=("hed", "depth", "canny"), saft_width=8), **changes).eval()


def test_maps_are_those_of_the_named_networks() -> None:
    batch, default = make_batch(), with_guidance()
    other = with_guidance(extractors=ExtractorConfig({"depth": "tiny"}))
    maps, others = default.guidance_maps(batch), other.guidance_maps(batch)
    assert torch.equal(maps["hed"], others["hed"])
    assert not torch.equal(maps["depth"], others["depth"])


def test_extractors_are_no_part_of_the_trained_state(tmp_path: Path) -> None:
    module = with_guidance(extractors=ExtractorConfig({"depth": "tiny"}))
    fit(module, make_batch(), 1).save_checkpoint(tmp_path / "run.ckpt")
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert not any("networks" in name for name in state["state_dict"])
    assert state["hyper_parameters"]["extractors"] == {
        "sources": {"depth": "tiny"}, "dtype": "float32", "cache": None,
    }  # fmt: skip
    assert MegaSRModule.from_checkpoint(tmp_path / "run.ckpt").networks.config.sources == {"depth": "tiny"}


def test_a_source_for_guidance_that_is_not_used_is_refused() -> None:
    with pytest.raises(UsageError, match="names segmentation, which adapter.guidance does not use"):
        with_guidance(extractors=ExtractorConfig({"segmentation": "tiny"}))


def test_a_tagger_tags_what_comes_without_tags() -> None:
    module = make_module(tagger=TaggerConfig("clip", threshold=0.0, max_tags=2)).eval()
    batch = make_batch()
    lq_up = upsample_lq(batch["lq"], 4)
    assert module.prompts(batch, lq_up) == batch["tags"]
    bare = {**batch, "tags": ["", "brick wall"]}
    found = module.prompts(bare, lq_up, "sharp")
    assert found[1] == "brick wall, sharp"
    assert found[0].count(", ") == 2 and found[0].endswith(", sharp")
    assert not any("tagger" in name for name, p in module.named_parameters() if p.requires_grad)


def test_a_tagger_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.tagger would do nothing: model\.adapter\.text is off"):
        make_module(tagger=TaggerConfig("clip"), adapter=AdapterConfig(text=False))


def test_a_tagger_comes_back_with_the_checkpoint(tmp_path: Path) -> None:
    module = make_module(tagger=TaggerConfig("clip", max_tags=3))
    fit(module, make_batch(), 1).save_checkpoint(tmp_path / "run.ckpt")
    back = MegaSRModule.from_checkpoint(tmp_path / "run.ckpt")
    assert back.tagger is not None and back.tagger.max_tags == 3
