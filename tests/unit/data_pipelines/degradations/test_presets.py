"""Degradation presets: parameters first, then lq."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_pipelines.datamodules import PhotoDataModule
from data_pipelines.degradations.presets import DEGRADATIONS, Bicubic, get_degradation, register_degradation
from megasr.errors import UsageError
from megasr.images import to_uint8

SCALES = {"none": 1}


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_replay_is_bit_equal_after_json(name: str) -> None:
    scale_factor = SCALES.get(name, 4)
    degradation = get_degradation(name, scale_factor)
    hq = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    params = degradation.sample_params(7, ["a", "b"])
    assert all((one["name"], one["scale_factor"]) == (name, scale_factor) for one in params)
    lq = degradation.apply(hq, params)
    assert lq.shape == (2, 3, 32 // scale_factor, 48 // scale_factor)
    assert lq.dtype == torch.float32
    assert lq.min() >= 0
    assert lq.max() <= 1
    assert torch.equal(lq, degradation.apply(hq, json.loads(json.dumps(params))))
    assert params == get_degradation(name, scale_factor).sample_params(7, ["a", "b"])
    alone = degradation.sample_params(7, ["b"])
    assert alone == params[1:]
    assert torch.equal(degradation.apply(hq[1:], alone), lq[1:])


def test_of_several_degradations_each_image_gets_one() -> None:
    parts = {name: get_degradation(name, 4) for name in ("stablesr_mild", "bicubic")}
    several = get_degradation("stablesr_mild+bicubic+bicubic", 4)
    keys = [str(number) for number in range(300)]
    drawn = several.sample_params(7, keys)
    assert drawn == several.sample_params(7, keys)
    assert drawn != several.sample_params(7, keys, variant=1)
    shares = [sum(params["name"] == name for params in drawn) / len(keys) for name in parts]
    assert shares == pytest.approx([1 / 3, 2 / 3], abs=0.1)
    assert {params["name"] for params in drawn[:6]} == set(parts)
    hq = torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    lq = several.apply(hq, drawn[:6])
    for place, params in enumerate(drawn[:6]):
        part = parts[params["name"]]
        assert params == part.sample_params(7, [keys[place]])[0]
        assert torch.equal(lq[place], part.apply(hq[place : place + 1], [params])[0])
        image = to_uint8(hq[place])
        assert torch.equal(several.apply_image(image, params), part.apply_image(image, params))


def test_bicubic_is_antialiased() -> None:
    """Stripes finer than a pixel of lq become grey: sampling every fourth pixel would keep them."""
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1
    lq = get_degradation("bicubic", 4).apply(stripes, [{}])
    assert (lq[..., 1:-1] - 0.5).abs().max() < 0.05


def test_none_keeps_the_image() -> None:
    hq = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    degradation = get_degradation("none", 1)
    assert torch.equal(degradation.apply(hq, degradation.sample_params(0, ["a"])), hq)


@pytest.mark.parametrize(
    ("name", "scale_factor", "says"),
    [
        ("bicubc", 4, "unknown degradation 'bicubc'; did you mean bicubic"),
        ("none", 4, "scale_factor 1, got 4"),
        ("stablesr_mild+bicubc", 4, "unknown degradation 'bicubc'; did you mean bicubic"),
        ("bicubic+", 4, "unknown degradation ''"),
        ("bicubic", 0, "scale_factor 2, 3, 4, 8, got 0"),
        ("realesrgan_strong", 5, "scale_factor 2, 3, 4, 8, got 5"),
    ],
)
def test_wrong_presets_are_refused(name: str, scale_factor: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        get_degradation(name, scale_factor)


def test_a_size_that_does_not_divide_is_named() -> None:
    with pytest.raises(UsageError, match="33x32 px is not a multiple of scale_factor 4"):
        get_degradation("bicubic", 4).apply(torch.zeros(1, 3, 32, 33), [{}])


def test_a_users_module_adds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_degradation.py").write_text(
        "from data_pipelines.degradations.presets import Bicubic, register_degradation\n"
        "register_degradation('mine', lambda scale_factor: Bicubic(scale_factor, name='mine'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MEGASR_IMPORT", "my_degradation")
    monkeypatch.setattr(DEGRADATIONS, "_entries", dict(DEGRADATIONS._entries))
    (batch,) = PhotoDataModule(degradation="mine", crop_size_px=32, batch_size=2, train_samples=2).train_dataloader()
    assert {params["name"] for params in batch["degradation"]} == {"mine"}
    with pytest.raises(UsageError, match="degradation 'bicubic' is registered twice"):
        register_degradation("bicubic", Bicubic)
