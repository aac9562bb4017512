"""Real photographs that are on every machine: the ones inside scikit-image's wheel. Nothing is downloaded.

Train and evaluation photographs are different photographs. Micrographs, astronomy, drawings and pages are left out, and
so is one of each stereo pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from megasr.errors import unknown_name
from megasr.images import read_image


@dataclass(frozen=True)
class Photo:
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
    image.setflags(write=False)  # it is shared by all who ask for it
    return image


def grid_crops(height: int, width: int, size_px: int, count: int) -> list[tuple[int, int]]:
    """(top, left) of crops of size_px that do not overlap, on a regular grid that covers the photograph.

    At most `count`, fewer when the photograph holds fewer. They are taken from the centre outwards, where photographs
    have their subject.
    """
    rows, columns = max(1, height // size_px), max(1, width // size_px)
    tops = _spread(height - size_px, rows)
    lefts = _spread(width - size_px, columns)
    places = [(top, left) for top in tops for left in lefts]
    centre = ((height - size_px) / 2, (width - size_px) / 2)
    places.sort(key=lambda p: ((p[0] - centre[0]) ** 2 + (p[1] - centre[1]) ** 2, p))
    return places[:count]


def _spread(slack: int, count: int) -> list[int]:
    """`count` equally spaced offsets in [0, slack]; the middle when there is one."""
    return [slack // 2] if count == 1 else [round(slack * i / (count - 1)) for i in range(count)]
