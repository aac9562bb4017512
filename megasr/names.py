"""Names: lists of them in all the ways in which people write them, and how a metric is called everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal


def split_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names of a list, or of one string with commas or spaces between them ("hed,depth")."""
    return tuple(given.replace(",", " ").split()) if isinstance(given, str) else tuple(given)


def metric_key(stage: Literal["train", "val", "test"], name: str) -> str:
    """How a metric is logged, in every command and study: `test/psnr_y`."""
    return f"{stage}/{name}"
