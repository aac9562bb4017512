"""Pictures of a training."""

from __future__ import annotations

import numpy as np
import torch

from megasr.training import monitor as panels


def test_a_strip_shows_every_image_whole_and_unsmoothed() -> None:
    lq, edge, hq = torch.zeros(3, 8, 8), torch.ones(1, 32, 32), torch.full((3, 32, 32), 0.5)
    lq[0, 0, 0] = 1
    picture = panels.strip({"lq": lq, "edge": edge, "hq": hq})
    height = 192
    assert picture.shape == (height + 20, 3 * height + 8, 3)
    tiles = [picture[20:, left : left + height] for left in (0, height + 4, 2 * height + 8)]
    assert (tiles[0][:24, :24] == (255, 0, 0)).all()
    assert (tiles[0][24:] == 0).all()
    assert (tiles[1] == 255).all()
    assert (tiles[2] == 128).all()
    assert len(np.unique(picture[:20])) > 2, "labels"
    assert panels.strip({"hq": torch.zeros(3, 512, 512)}).shape == (532, 512, 3), "large images stay as they are"


def test_the_strongest_cell_of_a_branch_is_the_darkest() -> None:
    numbers = {"gate/a": 0.0, "modulation/a/canny": 0.1, "gate/b": 0.02, "modulation/b/canny": 0.05}
    picture = panels.heat_map(numbers, "title").astype(int)
    redness = (picture[..., 0] - picture[..., 1]).clip(0)
    rows = [redness[20 * row + 1 : 20 * row + 18] for row in (2, 3)]
    assert picture.shape[0] == 20 * 4 + 6
    columns = np.flatnonzero(redness.max(0))
    middle = (columns[0] + columns[-1]) // 2
    assert np.median(rows[1][:, columns[0] + 20 : middle - 40]) > 0
    shades = [(row[:, columns[0] : middle].max(), row[:, middle:].max()) for row in rows]
    assert shades[0][0] == 0, "silent"
    assert shades[1][0] == shades[0][1] == 144, "the largest of each column"
    assert 0 < shades[1][1] < 144
