"""Rendered scenes as samples, and as a source without end for mixtures."""

from __future__ import annotations

import torch

from data_pipelines.samples import Sample


def scene_sample(key: str, index: int, seed: int, size_px: int) -> Sample:
    """Render scene `index` of `seed` at (size_px, size_px), with its tags and exact maps."""
    from data_pipelines.scenes import render_scene, segmentation_rgb

    scene = render_scene(index, seed, size_px)
    maps = {
        "oracle_depth": scene.depth[..., None],
        "oracle_normal": scene.normal,
        "oracle_segmentation": segmentation_rgb(scene.segmentation),
        "oracle_edge": scene.edges[..., None],
    }
    tensors = {name: torch.from_numpy(value).permute(2, 0, 1).contiguous().float() for name, value in maps.items()}
    return Sample(key, scene.hq, ", ".join(scene.tags), tensors)


class SceneSource:
    """Scenes of one seed (see data_pipelines.samples.Source): every draw is a new one.

    Args:
        size_px: height and width.
        seed: of the scenes.
    """

    def __init__(self, size_px: int, seed: int) -> None:
        self.size_px, self.seed = size_px, seed

    @property
    def fingerprint(self) -> str:
        """Of the seed."""
        return f"scenes of seed {self.seed}"

    def __len__(self) -> int:
        return 2**40  # more than any training draws

    def read(self, index: int) -> Sample:
        """Scene `index`."""
        return scene_sample(f"scene/{index}", index, self.seed, self.size_px)

    def order(self, draw: int, seed: int) -> int:
        """Scenes have no order to shuffle: draw d shows scene d."""
        return draw % len(self)
