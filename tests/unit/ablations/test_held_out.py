"""Held-out images: made once for all runs of a process, and the same as made anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ablations import held_out
from ablations.held_out import HeldOut
from ablations.plan import Components
from tests.helpers.tiny_study import tiny_components

CPU = torch.device("cpu")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for every data module that is built."""
    built: list[Any] = []

    def counting(components: Components, config: dict[str, Any]) -> Any:
        built.append(config)
        return build(components, config)

    build = held_out.build
    monkeypatch.setattr(held_out, "build", counting)
    return built


def _section(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "TinyData", "init_args": {"scale_factor": 4, **arguments}}


def _all(images: HeldOut, section: dict[str, Any]) -> list[torch.Tensor]:
    return [batch["lq"] for batch in images.batches(section, tiny_components(), CPU)]


def test_they_are_made_once_and_are_the_same_as_anew(made: list[Any]) -> None:
    images = HeldOut()
    first, second = _all(images, _section()), _all(images, _section())
    assert len(made) == 1
    anew = _all(HeldOut(), _section())
    assert len(made) == 2
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, anew, strict=True))


def test_other_data_are_made_anew(made: list[Any]) -> None:
    images = HeldOut()
    _all(images, _section())
    _all(images, _section(scale_factor=2))
    assert len(made) == 2


def test_many_images_are_not_kept(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "_KEPT_BYTES", 1)
    images = HeldOut()
    first, second = _all(images, _section()), _all(images, _section())
    assert len(made) == 2
    assert len(first) == len(second)
