"""What training samples lose: each draw on its own, the same when it is repeated or replayed."""

import pytest
import torch

from megasr.errors import UsageError
from megasr.networks.config import AdapterConfig
from megasr.training.config import ObjectiveConfig
from megasr.training.module import draw_dropout, without_dropped
from tests.helpers.training import make_module

TYPES = ("canny", "superpixel")
MANY = {"keys": [f"{i}" for i in range(2000)]}


def lost(objective, seed=0, step=3, batch=MANY):
    return draw_dropout(batch, objective, TYPES, seed, step)


def test_rates_are_the_configured_ones_and_independent():
    drawn = lost(ObjectiveConfig(0.25, 0.5, type_dropout=0.3))
    text, every = drawn["text_dropped"], drawn["guidance_dropped"]
    canny, superpixel = (drawn["types_dropped"][name] for name in TYPES)
    for dropped, share in ((text, 0.25), (every, 0.5), (canny, 0.3), (superpixel, 0.3)):
        assert dropped.float().mean().item() == pytest.approx(share, abs=0.035)
    for a, b, share in ((text, every, 0.125), (canny, superpixel, 0.09), (every, canny, 0.15)):
        assert (a & b).float().mean().item() == pytest.approx(share, abs=0.025)


def test_drawn_anew_for_every_step_and_seed():
    objective = ObjectiveConfig(0.5, 0.5, type_dropout=0.5)
    first, again, later, other = lost(objective), lost(objective), lost(objective, step=4), lost(objective, seed=1)
    for view in (lambda d: d["text_dropped"], lambda d: d["guidance_dropped"], lambda d: d["types_dropped"]["canny"]):
        assert torch.equal(view(first), view(again))
        assert not torch.equal(view(first), view(later))
        assert not torch.equal(view(first), view(other))


def test_a_batch_that_says_what_was_dropped_is_replayed_map_by_map():
    said = {
        "text_dropped": torch.tensor([True, False, False]),
        "guidance_dropped": torch.tensor([False, True, False]),
        "types_dropped": {"canny": torch.tensor([True, False, False]), "superpixel": torch.tensor([False] * 3)},
    }
    drawn = lost(ObjectiveConfig(0.5, 0.5, type_dropout=0.5), batch={"keys": ["a", "b", "c"], **said})
    assert all(torch.equal(drawn[name], said[name]) for name in ("text_dropped", "guidance_dropped"))
    maps = without_dropped(drawn, {name: torch.ones(3, 1, 2, 2) for name in TYPES})
    assert [bool(m.any()) for m in maps["canny"]] == [False, False, True]
    assert [bool(m.any()) for m in maps["superpixel"]] == [True, False, True]


def test_dropout_of_types_that_are_not_there_is_refused():
    with pytest.raises(UsageError, match=r"type_dropout would do nothing: model\.adapter\.guidance is empty"):
        make_module(adapter=AdapterConfig(saft_width=8), objective=ObjectiveConfig(type_dropout=0.5))
