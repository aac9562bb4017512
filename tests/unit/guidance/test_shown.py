"""A part of an adapter's guidance: what is shown, what is zero, and what is hq's."""

import pytest
import torch

from megasr.errors import UsageError
from megasr.guidance.extract import Networks, extract_shown, shown_guidance
from megasr.guidance.registry import resolve_guidance
from megasr.networks.config import AdapterConfig
from megasr.training.config import SamplerConfig
from tests.helpers.training import make_batch, make_module

TYPES = resolve_guidance(["canny", "superpixel"])


def maps_of(names, batch=None):
    return extract_shown(batch or make_batch(), shown_guidance(TYPES, names), 4, Networks())


def test_what_is_not_shown_is_zero_and_nothing_else_changes():
    everything, part, nothing = maps_of(None), maps_of(["superpixel"]), maps_of([])
    assert list(everything) == list(part) == list(nothing)
    assert everything["canny"].any() and not part["canny"].any() and part["canny"].shape == everything["canny"].shape
    assert torch.equal(part["superpixel"], everything["superpixel"])
    assert not any(m.any() for m in nothing.values())


def test_an_oracle_takes_its_types_place():
    batch = make_batch()
    shown = maps_of(["oracle_canny"], batch)
    wanted = maps_of(["canny"], {**batch, "lq": batch["hq"][..., ::4, ::4]})
    assert list(shown) == ["canny", "superpixel"] and not shown["superpixel"].any()
    assert shown["canny"].any() and not torch.equal(shown["canny"], maps_of(["canny"], batch)["canny"])
    assert shown["canny"].shape == wanted["canny"].shape


def test_an_oracle_that_the_adapter_has_keeps_its_own_place():
    types = resolve_guidance(["canny", "oracle_canny"])
    shown = shown_guidance(types, ["oracle_canny"])
    assert {own.name: source and source.name for own, source in shown.items()} == {
        "canny": None,
        "oracle_canny": "oracle_canny",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hed"], r"shown_guidance: hed is not in model\.adapter\.guidance: canny, superpixel"),
        (["canny", "oracle_canny"], "shows canny twice"),
        (["cany"], "did you mean canny"),
    ],
)
def test_what_cannot_be_shown_is_one_line(names, message):
    with pytest.raises(UsageError, match=message):
        shown_guidance(TYPES, names)


def test_only_the_sampler_is_changed_by_it():
    adapter = AdapterConfig(guidance=("canny", "superpixel"), saft_width=8, fusion_init="as_drawn")

    def restored(names):
        sampler = SamplerConfig(num_steps=1, shown_guidance=names)
        return make_module(adapter=adapter, sampler=sampler).eval().restore(make_batch())

    full, part, same = restored(None), restored(("canny",)), restored(("canny", "superpixel"))
    assert torch.equal(full, same) and not torch.equal(full, part)
