"""Captions of the contact sheet."""

from __future__ import annotations

from ablations.contact_sheet import _captions
from megasr.evaluation.protocol import WEIGHT_FREE_V1


def test_the_best_is_of_the_combinations_and_by_the_direction_of_the_metric() -> None:
    up, down = WEIGHT_FREE_V1.metric("fsim"), WEIGHT_FREE_V1.metric("gmsd")
    assert _captions([0.9, 0.61, 0.72], up) == [("0.900", False), ("0.610", False), ("0.720", True)]
    assert _captions([0.1, 0.21, 0.32], down) == [("0.100", False), ("0.210", True), ("0.320", False)]


def test_decibels_have_two_digits_behind_the_point() -> None:
    assert _captions([23.456, 20.0], WEIGHT_FREE_V1.metric("psnr_y")) == [("23.46", False), ("20.00", True)]
