"""Protocols: what enters the fingerprint, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from megasr.errors import UsageError
from megasr.evaluation.protocol import PROTOCOLS, WEIGHT_FREE_V1, get_protocol

_CHANGES = {
    "name": "other",
    "version": 2,
    "metrics": WEIGHT_FREE_V1.metrics[:2],
    "color_space": "yiq",
    "border_px": 4,
    "size_px": 512,
}


@pytest.mark.parametrize("field", _CHANGES)
def test_every_field_changes_the_fingerprint(field: str) -> None:
    changed = replace(WEIGHT_FREE_V1, **{field: _CHANGES[field]})
    assert changed.fingerprint != WEIGHT_FREE_V1.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"pyiqa_name": "psnry"},
        {"higher_is_better": False},
        {"on_y": False},
        {"arguments": (("crop_border", 4),)},
        {"needs_hq": False},
        {"weights": ("alex",)},
        {"of_set": True},
    ],
)
def test_every_field_of_a_metric_changes_the_fingerprint(change: dict) -> None:
    metric = replace(WEIGHT_FREE_V1.metrics[0], **change)
    changed = replace(WEIGHT_FREE_V1, metrics=(metric, *WEIGHT_FREE_V1.metrics[1:]))
    assert changed.fingerprint != WEIGHT_FREE_V1.fingerprint


def test_every_field_is_tried() -> None:
    assert {f.name for f in fields(WEIGHT_FREE_V1)} == {*_CHANGES, "rounding", "resize"}  # these two take one value


def test_fingerprints_are_pinned() -> None:
    # Numbers are published under them: whoever changes what is measured adds a protocol and leaves these as they are.
    assert {name: protocol.fingerprint for name, protocol in PROTOCOLS.items()} == {
        "weight-free-v1": "1e7481d0",
        "weight-free-v2": "894a9ebf",
        "paired-v1": "0601dde0",
        "study-v1": "fec165f3",
        "no-reference-v1": "f539e2e9",
        "stablesr-crops-v1": "45101352",
        "dreamclear-1024-v1": "fcd9261c",
        "whole-image-v1": "f5b7e718",
        "rgb-v1": "ae271c5a",
        "stablesr-crops-v2": "8e071e7f",
        "whole-image-v2": "a1a9acb5",
        "ntire26-perceptual-v1": "df2b8eaf",
    }


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="weight-free-v1"):
        get_protocol("weight-free")
    assert all(get_protocol(name).name == name for name in PROTOCOLS)


def test_bad_fields_are_refused() -> None:
    with pytest.raises(UsageError, match="rounding 'none'"):
        replace(WEIGHT_FREE_V1, rounding="none")
    with pytest.raises(UsageError, match="resize 'bicubic'"):
        replace(WEIGHT_FREE_V1, resize="bicubic")
    with pytest.raises(UsageError, match="border_px -1"):
        replace(WEIGHT_FREE_V1, border_px=-1)
    with pytest.raises(UsageError, match="occurs twice"):
        replace(WEIGHT_FREE_V1, metrics=WEIGHT_FREE_V1.metrics[:1] * 2)


def test_what_is_made_of_metrics_comes_after_them() -> None:
    whole = get_protocol("ntire26-perceptual-v1")
    score = whole.metric("ntire26_score")
    with pytest.raises(UsageError, match="ntire26_score is made of niqe, not measured before it"):
        replace(whole, metrics=(*whole.metrics[:-2], score, whole.metric("niqe")))
    assert replace(whole, metrics=(*whole.metrics[:-1], replace(score, of_metrics=score.of_metrics[::-1]))) != whole
    with pytest.raises(UsageError, match="made of a: give it a function"):
        replace(whole.metric("psnr_y_border4"), of_metrics=("a",))


def test_protocols_that_take_a_metric_alike_share_its_published_numbers() -> None:
    first, second = (get_protocol(f"stablesr-crops-v{version}") for version in (1, 2))
    assert second.measures_alike(first, ("psnr", "fid"))
    assert not first.measures_alike(second, ("psnr", "qalign"))
    assert not get_protocol("whole-image-v2").measures_alike(first, ("psnr",))  # other sizes
    assert not first.measures_alike(get_protocol("dreamclear-1024-v1"), ("psnr",))


def test_a_metric_is_found_by_name() -> None:
    assert WEIGHT_FREE_V1.metric("gmsd").higher_is_better is False
    with pytest.raises(UsageError, match="ssim_y"):
        WEIGHT_FREE_V1.metric("ssim")
