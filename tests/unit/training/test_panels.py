"""Pictures of a training."""

from __future__ import annotations

import numpy as np
import torch

from megasr.training import monitor as panels


def test_a_strip_shows_every_image_whole_and_unsmoothed() -> None:
    lq, edge, hq = torch.zeros(3, 8, 8), torch.ones(1, 32, 32), torch.full((3, 32, 32), 0.5)
    lq[0, 0, 0] = 1
    picture = panels.strip({"lq": lq, "edge": edge, "hq": hq})
    tiles = [picture[4:196, left : left + 192] for left in (4, 200, 396)]
    assert picture.shape == (200, 592, 3)
    assert (tiles[0][:24, :24] == (255, 0, 0)).all()
    assert (tiles[0][24:] == 0).all()
    assert (tiles[1] == 255).all()
    assert (tiles[2] == 128).all()
    assert panels.strip({"hq": torch.zeros(3, 512, 512)}).shape == (512, 512, 3), "large images stay as they are"


def test_the_strongest_cell_of_a_branch_is_the_darkest() -> None:
    numbers = {"gate/a": 0.0, "modulation/a/canny": 0.1, "gate/b": 0.02, "modulation/b/canny": 0.05}
    picture = panels.heat_map(numbers, "title").astype(int)

    def area(color: tuple[int, int, int]) -> int:
        return int((abs(picture - np.array(color)).max(-1) < 4).sum())

    darkest, middle = area((103, 0, 13)), area((251, 105, 74))  # of matplotlib's Reds, at 1 and 1/2
    assert 0 < middle < darkest, "the largest of both columns; half of it; nothing"
