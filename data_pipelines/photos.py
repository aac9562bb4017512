"""The photographs inside scikit-image's wheel: nothing is downloaded. Train and evaluation photographs differ.

Micrographs, drawings, pages and one of each stereo pair are left out.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megasr.errors import unknown_name
from megasr.images import read_image


class Photo(NamedTuple):
    """A photograph inside scikit-image: its name in keys, its file, and what it shows."""

    name: str
    file: str
    tags: tuple[str, ...]


TRAIN_PHOTOS = (
    Photo("astronaut", "astronaut.png", ("woman", "astronaut", "orange suit", "flag")),
    Photo("motorcycle", "motorcycle_left.png", ("motorcycle", "garage", "tools")),
    Photo("brick", "brick.png", ("gray brick wall",)),
    Photo("gravel", "gravel.png", ("gray gravel ground",)),
)
EVAL_PHOTOS = (
    Photo("chelsea", "chelsea.png", ("cat", "fur")),
    Photo("coffee", "coffee.png", ("coffee cup", "spoon", "wooden table")),
    Photo("rocket", "rocket.jpg", ("rocket", "launch tower", "sky")),
    Photo("camera", "camera.png", ("man", "camera", "tripod", "grass ground", "overcast gray sky")),
    Photo("grass", "grass.png", ("grass ground",)),
    Photo("moon", "moon.png", ("moon", "craters")),
    Photo("hubble", "hubble_deep_field.jpg", ("galaxies", "night sky")),
    Photo("coins", "coins.png", ("coins", "black cloth table")),
)
_BY_NAME = {photo.name: photo for photo in (*TRAIN_PHOTOS, *EVAL_PHOTOS)}


@lru_cache
def load_photo(name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB; greyscale photographs have three equal channels.

    Raises:
        UsageError: there is no photograph of this name.
    """
    import skimage

    if name not in _BY_NAME:
        raise unknown_name("photograph", name, _BY_NAME)
    image = read_image(Path(skimage.__file__).parent / "data" / _BY_NAME[name].file)
    image.setflags(write=False)  # it is cached
    return image


def grid_crops(height: int, width: int, size_px: int, count: int) -> list[tuple[int, int]]:
    """(top, left) of at most `count` disjoint crops of size_px on a regular grid, from the centre outwards."""
    tops, lefts = (_spread(length - size_px, max(1, length // size_px)) for length in (height, width))
    centre = ((height - size_px) / 2, (width - size_px) / 2)
    places = product(tops, lefts)
    return sorted(places, key=lambda p: ((p[0] - centre[0]) ** 2 + (p[1] - centre[1]) ** 2, p))[:count]


def _spread(slack: int, count: int) -> list[int]:
    """`count` equally spaced offsets in [0, slack]; the middle when there is one."""
    return [slack // 2] if count == 1 else [round(slack * i / (count - 1)) for i in range(count)]
