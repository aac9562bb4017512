"""The sheet of restorations: five pictures in a row, and maps that are off change the restoration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.tiny import restorations


def test_a_row_has_lq_bicubic_sr_without_and_with_maps_and_hq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def take(tiles: list[np.ndarray], captions: list[str], columns: int) -> np.ndarray:
        drawn.append((tiles, [caption.split()[0] for caption in captions], columns))
        return tiles[0]

    monkeypatch.setattr(restorations, "sheet", take)
    monkeypatch.setattr("sys.argv", ["restorations", str(tmp_path / "out.png"), "--count", "1", "--size", "64"])
    restorations.main()
    ((tiles, labels, columns),) = drawn
    assert labels == 2 * ["lq", "bicubic", "no", "all", "hq"] and columns == 5, "a photograph and a scene"
    assert {tile.shape for tile in tiles} == {(64, 64, 3)} and not np.array_equal(tiles[2], tiles[3])
    assert max(np.abs(tile.astype(float) - tiles[4]).mean() for tile in tiles[:4]) < 60
    assert not np.array_equal(tiles[4], tiles[9])
    assert (tmp_path / "out.png").is_file()
