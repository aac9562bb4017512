"""Where maps come from, and what is refused."""

from __future__ import annotations

import pytest
import torch

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.guidance import extract as extraction
from megasr.guidance.extract import extract_guidance
from megasr.guidance.registry import resolve_guidance
from megasr.images import upsample_lq


def batch() -> SRBatch:
    return {"keys": ["a", "b"], "lq": torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))}


def test_a_map_of_the_batch_is_taken_as_it_is() -> None:
    given = batch()
    given["maps"] = {"canny": torch.full((2, 1, 16, 24), 0.25, dtype=torch.float16, requires_grad=True)}
    maps = extract_guidance(given, resolve_guidance(["canny", "noise"]), 2)
    assert list(maps) == ["canny", "noise"]
    assert torch.equal(maps["canny"], torch.full((2, 1, 16, 24), 0.25))
    assert maps["canny"].dtype == torch.float32
    assert not maps["canny"].requires_grad
    assert list(given["maps"]) == ["canny"], "the batch of the caller is left alone"


def test_maps_have_the_size_of_hq() -> None:
    maps = extract_guidance(batch(), resolve_guidance(["canny", "superpixel", "noise"]), 3)
    assert {tuple(image.shape[-2:]) for image in maps.values()} == {(24, 36)}


def test_lq_is_upsampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(lq: torch.Tensor, scale_factor: int) -> torch.Tensor:
        calls.append(scale_factor)
        return upsample_lq(lq, scale_factor)

    monkeypatch.setattr(extraction, "upsample_lq", counted)
    extract_guidance(batch(), resolve_guidance(["canny", "superpixel", "noise"]), 2)
    assert calls == [2]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.zeros(2, 3, 16, 24), r"map canny: expected .* \(2, 1, 16, 24\), got \(2, 3, 16, 24\)"),
        (torch.zeros(1, 1, 16, 24), r"got \(1, 1, 16, 24\)"),
        (torch.zeros(2, 1, 16, 16), r"got \(2, 1, 16, 16\)"),
        (torch.full((2, 1, 16, 24), 1.5), r"must be in \[0, 1\], got \[1.5, 1.5\]"),
        (torch.full((2, 1, 16, 24), -0.5), r"must be in \[0, 1\], got \[-0.5, -0.5\]"),
        (torch.full((2, 1, 16, 24), float("nan")), r"must be in \[0, 1\], got \[nan, nan\]"),
    ],
)
def test_wrong_maps_are_refused(bad: torch.Tensor, says: str) -> None:
    given = batch()
    given["maps"] = {"canny": bad}
    with pytest.raises(UsageError, match=says):
        extract_guidance(given, resolve_guidance(["canny"]), 2)
