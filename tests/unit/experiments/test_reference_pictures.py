"""The sheets of what measured adapters make: the right pictures in the right places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.embedded import PhotoDataModule, SceneDataModule
from experiments.reference import pictures
from experiments.reference.__main__ import main
from experiments.reference.measure import Workplace
from experiments.tiny.pictures import sheet
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from megasr.images import read_image

RECIPE = """
model: {{adapter: {{text: false, saft_width: 8, guidance: [{guidance}]}}, sampler: {{num_steps: 1}}}}
data:
  class_path: SceneDataModule
  init_args: {{crop_size_px: 32, eval_crop_size_px: 64, batch_size: 2, train_samples: 2, eval_samples: 3, pool: 2}}
trainer: {{max_steps: 1, accelerator: cpu, devices: 1, log_every_n_steps: 1}}
"""
PLACE = Workplace(protocol=Protocol("fast", 1, WEIGHT_FREE_V1.metrics[:2]))
SIZE_PX = 64


def _call(folder: Path, *words: str) -> int:
    return main([*(f"--{name}={folder / name}" for name in ("recipes", "references", "runs")), *words], PLACE)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes, one of which needs exact maps, and a third that has not been measured."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "recipes" / "tiny").mkdir(parents=True)
    for name, guidance in (("plain", ""), ("edge", "oracle_edge"), ("other", "canny")):
        (folder / "recipes" / "tiny" / f"{name}.yaml").write_text(RECIPE.format(guidance=guidance))
    assert _call(folder, "measure", "tiny/plain", "tiny/edge", "--seeds", "0") == 0
    return folder


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray]]:
    """The pictures that a sheet is made of, row by row."""
    found: list[list[np.ndarray]] = []

    def record(tiles: list[np.ndarray], captions: list[str], columns: int) -> np.ndarray:
        assert len(tiles) == len(captions)
        found.extend(tiles[start : start + columns] for start in range(0, len(tiles), columns))
        return sheet(tiles, captions, columns)

    monkeypatch.setattr(pictures, "sheet", record)
    return found


def test_scenes_stand_beside_bicubic_and_hq(measured: Path, rows: list[list[np.ndarray]]) -> None:
    path = measured / "scenes.png"
    assert _call(measured, "pictures", "tiny/plain", "tiny/edge", "--rows", "2", "--write", str(path)) == 0
    assert len(rows) == 2
    assert read_image(path).shape[1] == 5 * (2 * SIZE_PX + 8) + 8
    data = SceneDataModule(crop_size_px=32, eval_crop_size_px=SIZE_PX, batch_size=2)
    for index, (lq, *sr, hq) in enumerate(rows):
        assert (hq == data.eval_sample(index).hq).all()
        assert (lq == lq[::4, ::4].repeat(4, 0).repeat(4, 1)).all()
        assert len({picture.tobytes() for picture in sr}) == 3  # bicubic and two adapters
        stored = [
            read_image(run / "sr" / "eval-scene" / f"{index}.png") for run in (measured / "runs").glob("*-tiny-*")
        ]
        assert {picture.tobytes() for picture in sr[1:]} == {picture.tobytes() for picture in stored}


def test_photographs_are_restored_anew(
    measured: Path, rows: list[list[np.ndarray]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pictures", "--images", "photographs", "--rows", "2", "--write", str(measured / "photographs.png")]
    assert _call(measured, *words, "tiny/plain") == 0
    data = PhotoDataModule(eval_crop_size_px=SIZE_PX, crop_size_px=32, batch_size=2, eval_samples=2)
    assert [len(row) for row in rows] == [4, 4]
    assert all((row[-1] == data.eval_sample(index).hq).all() for index, row in enumerate(rows))
    assert _call(measured, *words, "tiny/edge") == 2
    assert "tiny/edge needs oracle_edge, which photographs do not have" in capsys.readouterr().err


def test_a_recipe_without_a_run_is_told(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(measured, "pictures", "tiny/other", "--write", str(measured / "none.png")) == 1
    assert "measure tiny/other --seeds 0" in capsys.readouterr().err
    assert not (measured / "none.png").exists()
