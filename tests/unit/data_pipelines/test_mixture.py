"""Mixtures: shares, keys that stay unique, and each source's own order."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from data_pipelines.mixture import MixtureSource, shuffled
from data_pipelines.samples import Sample, UnusableSampleError
from megasr.errors import UsageError


class Numbers:
    """A source of `length` images whose pixels say their number; number 3 is damaged."""

    def __init__(self, length: int, first: int = 0) -> None:
        self.length, self.first = length, first

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        if index == 3:
            raise UnusableSampleError("image3", "unreadable", "no image", damaged=False)
        return Sample(f"image{index}", np.full((1, 1, 3), self.first + index, np.uint8), tags="dog")

    def order(self, draw: int, seed: int) -> int:
        return shuffled(draw, self.length, seed)


def test_every_image_of_every_source_is_there_under_its_own_key() -> None:
    mixture = MixtureSource([Numbers(2), Numbers(3, 100), Numbers(1, 200)], [1, 1, 1])
    samples = [mixture.read(index) for index in range(len(mixture))]
    assert [(sample.key, int(sample.hq[0, 0, 0])) for sample in samples] == [
        ("0:image0", 0),
        ("0:image1", 1),
        ("1:image0", 100),
        ("1:image1", 101),
        ("1:image2", 102),
        ("2:image0", 200),
    ]
    assert all(sample.tags == "dog" for sample in samples)


def test_shares_are_kept_and_each_source_goes_its_own_way() -> None:
    sources = [Numbers(5), Numbers(7), Numbers(40)]
    mixture = MixtureSource(sources, [3, 1, 6])
    drawn = [mixture.order(draw, 11) for draw in range(3000)]
    number = [int(np.searchsorted([5, 12, 52], index, side="right")) for index in drawn]
    for start in range(0, 3000, 1000):
        assert Counter(number[start : start + 1000]) == {0: 300, 1: 100, 2: 600}
    assert len({tuple(number[start : start + 20]) for start in range(0, 3000, 20)}) > 100, "mixed, not in turn"
    for source, offset in enumerate((0, 5, 12)):
        own = [index - offset for index, which in zip(drawn, number, strict=True) if which == source]
        assert own == [sources[source].order(draw, 11) for draw in range(len(own))]
    other = [mixture.order(draw, 12) for draw in range(3000)]
    assert number != [int(np.searchsorted([5, 12, 52], index, side="right")) for index in other], "of its seed"


def test_an_unusable_image_is_named_with_its_source() -> None:
    mixture = MixtureSource([Numbers(2), Numbers(9)], [1, 1])
    with pytest.raises(UnusableSampleError, match=r"^1:image3: unreadable \(no image\)$") as caught:
        mixture.read(5)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.key, error.reason, error.damaged) == ("1:image3", "unreadable", False)
        assert str(error) == "1:image3: unreadable (no image)"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], []), "got 0 for 0"),
        (([Numbers(1)], [1, 2]), "got 2 for 1"),
        (([Numbers(1), Numbers(1)], [1, 0]), "the weight of source 1 must be positive, got 0"),
        (([Numbers(1)], [float("nan")]), "must be positive, got nan"),
        (([Numbers(1)], [float("inf")]), "must be positive, got inf"),
        (([Numbers(1), Numbers(0)], [1, 1]), "source 1 of a mixture is empty"),
    ],
)
def test_wrong_mixtures_are_refused(arguments: tuple, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        MixtureSource(*arguments)
