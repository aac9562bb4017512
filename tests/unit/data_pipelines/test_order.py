"""Orders of draws: what small shares, scenes and baked variants get, and what a fingerprint depends on."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipelines.mixture import MixtureSource, QuotaOrder
from data_pipelines.samples import names_fingerprint
from data_pipelines.scenes.source import SceneSource
from data_pipelines.shards.baked import BakedDraw


def test_the_smallest_share_has_a_draw_in_every_block() -> None:
    order = QuotaOrder([1e6, 1], seed=3)
    dealt = [order(draw) for draw in range(3 * order.block)]
    assert [number for source, number in dealt if source == 1] == [0, 1, 2]
    assert [number for source, number in dealt if source == 0] == list(range(3 * order.block - 3))


def test_a_fingerprint_depends_on_names_and_their_order() -> None:
    assert names_fingerprint("ab") == names_fingerprint(iter("ab"))
    assert len({names_fingerprint(names) for names in ("ab", "ba", "a", ["ab"], "")}) == 5
    scenes = [SceneSource(32, seed) for seed in range(3)]
    mixtures = [
        MixtureSource(scenes[:2], [1, 1]),
        MixtureSource(scenes[1:], [1, 1]),
        MixtureSource(scenes[:2], [1, 2]),
    ]
    assert len({mixture.fingerprint for mixture in mixtures}) == 3


def test_every_draw_of_scenes_is_a_new_one_of_the_seed() -> None:
    source, other = SceneSource(32, 4), SceneSource(32, 5)
    samples = [source.read(source.order(draw, 0)) for draw in range(4)]
    assert [sample.key for sample in samples] == [f"scene/{draw}" for draw in range(4)]
    assert len({sample.hq.tobytes() for sample in samples}) == 4
    assert all(sample.hq.tobytes() != other.read(n).hq.tobytes() for n, sample in enumerate(samples))


class _Variants:
    """A baked set of 3 variants of 20 images that gives the variant's number."""

    originals, variants = range(20), 3

    def read(self, index: int, variant: int) -> Any:
        return variant


def test_all_variants_of_an_image_come_before_any_comes_again_in_an_order_of_its_own() -> None:
    def shown(seed: int) -> np.ndarray:
        """(epoch, image) -> variant, of six epochs, in the middle of each."""
        return np.array([
            [BakedDraw(_Variants(), epoch * 20 + 7, seed).read(image) for image in range(20)]  # type: ignore[arg-type]
            for epoch in range(6)
        ])  # fmt: skip

    seen = shown(0)
    for turn in (seen[:3], seen[3:]):
        assert (np.sort(turn, axis=0) == np.arange(3)[:, None]).all()
        assert len({tuple(order) for order in turn.T}) > 3, "images differ"
    assert (seen[:3] != seen[3:]).any(), "turns differ"
    assert (seen != shown(1)).any(), "seeds differ"
    same_epoch = [BakedDraw(_Variants(), draw, 0).read(4) for draw in range(20)]  # type: ignore[arg-type]
    assert len(set(same_epoch)) == 1
