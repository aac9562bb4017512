"""Which things of a scene, or of a window of it, are seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TAG_SHARE = 0.01  # a tag needs this share of the pixels


def visible_tags(names: Sequence[str], instance: np.ndarray) -> tuple[str, ...]:
    """Tags that cover at least 1 % of the pixels, largest first; equal tags count together.

    Args:
        names: object id -> tag.
        instance: (H, W) object ids.
    """
    area: dict[str, int] = {}
    for name, count in zip(names, np.bincount(instance.ravel(), minlength=len(names)).tolist(), strict=True):
        area[name] = area.get(name, 0) + count
    ranked = sorted(area.items(), key=lambda item: (-item[1], item[0]))
    return tuple(name for name, count in ranked if count >= _TAG_SHARE * instance.size)


def patch_tags(names: Sequence[str], instance: np.ndarray, patches: int) -> tuple[str, ...]:
    """The tag with the largest area in each of patches x patches parts of a square picture, row by row.

    Args:
        names: object id -> tag.
        instance: (H, H) object ids; H is a multiple of `patches`.
        patches: parts along a side.
    """
    side = len(instance) // patches
    parts = instance.reshape(patches, side, patches, side).swapaxes(1, 2).reshape(patches * patches, -1)
    return tuple(visible_tags(names, part)[0] for part in parts)
