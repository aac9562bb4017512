"""Which images are worth training on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipelines.samples import Sample, Source, UnusableSampleError
from megasr.errors import UsageError


@dataclass(frozen=True)
class ImageFilter:
    """Drops images that are small or blurred: the model would learn that hq looks like lq.

    Args:
        min_size_px: least height and width.
        min_sharpness: least variance of the Laplacian (see sharpness); 0 keeps all. The photographs of BSDS500 (481x321
            px) have 280 to 4500, crops at the full resolution of a camera (DRealSR) 8 to 160: look before choosing.

    Raises:
        UsageError: a value is negative or not a number.
    """

    min_size_px: int = 0
    min_sharpness: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0:
                raise UsageError(f"{name} must be a number of at least 0, got {value}")

    def reason(self, hq: np.ndarray) -> str | None:
        """Why (H, W, 3) uint8 is dropped, the same words for every image; None when it is kept."""
        if min(hq.shape[:2]) < self.min_size_px:
            return f"smaller than {self.min_size_px} px"
        if self.min_sharpness > 0 and sharpness(hq) < self.min_sharpness:
            return f"less sharp than {self.min_sharpness}"
        return None


class FilteredSource:
    """A source whose read() refuses what a filter drops; the order stays the same."""

    def __init__(self, source: Source, image_filter: ImageFilter) -> None:
        self.source, self.image_filter = source, image_filter
        self.fingerprint, self.order = source.fingerprint, source.order

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        """Image `index` of the source. Raises UnusableSampleError when the source cannot read it or it is dropped."""
        sample = self.source.read(index)
        if reason := self.image_filter.reason(sample.hq):
            height, width = sample.hq.shape[:2]
            raise UnusableSampleError(sample.key, reason, f"{width}x{height} px", damaged=False)
        return sample

    def tags(self, index: int) -> str:
        """The tags of image `index` of the source, dropped or not. Raises as the source does."""
        return self.source.tags(index)


def sharpness(hq: np.ndarray) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000).

    Of the 4-neighbour Laplacian of the 8-bit luma (BT.601). It grows with contrast and noise as well as with focus, and
    falls when an image is enlarged.

    Args:
        hq: (H, W, 3) uint8.

    Returns:
        In [0, 1020**2]; 0 for a flat image.
    """
    import cv2

    luma = cv2.cvtColor(hq, cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S, ksize=1))
    return float(deviation.item()) ** 2


def describe_drops(counts: Mapping[str, int], total: int) -> str:
    """One line: how many of `total` images were dropped, and the count of every reason, largest first."""
    reasons = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    return f"{sum(counts.values())} of {total} images dropped" + (f": {parts}" if parts else "")
