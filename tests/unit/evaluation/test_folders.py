"""Folders: the rows are the same for any number of processes, and every failure names its image."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation import folders as module
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.folders import evaluate_folder
from megasr.evaluation.protocol import PROTOCOLS, WEIGHT_FREE_V1
from megasr.images import from_uint8, read_image, to_uint8, write_png
from megasr.rng import torch_generator


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Seven images of two sizes, sr and hq."""
    for index in range(7):
        size = (48, 64 + 16 * (index % 2))
        hq = torch.rand(3, *size, generator=torch_generator(index, "hq"))
        noise = torch.randn(3, *size, generator=torch_generator(index, "sr"))
        write_png(to_uint8(hq), tmp_path / "hq" / f"{index}.png")
        write_png(to_uint8(hq + 0.02 * (index + 1) * noise), tmp_path / "sr" / f"{index}.png")
    return tmp_path / "sr", tmp_path / "hq"


def test_rows_are_the_same_for_one_and_for_two_processes(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = Evaluator(WEIGHT_FREE_V1, metrics=["psnr_y", "fsim", "ssim_y"])
    seen: list[tuple[int, int]] = []
    alone = evaluate_folder(*folders, evaluator, progress=lambda *done: seen.append(done))
    assert alone.keys == tuple("0123456")
    assert seen == [(done, 7) for done in range(1, 8)]
    assert list(alone.means) == ["psnr_y", "ssim_y", "fsim"]  # the protocol's order, not the caller's
    psnrs = [row["psnr_y"] for row in alone.rows]
    assert psnrs == sorted(psnrs, reverse=True)
    assert alone.means["psnr_y"] == pytest.approx(np.mean(psnrs))
    low, high = alone.intervals["psnr_y"]
    assert min(psnrs) < low < alone.means["psnr_y"] < high < max(psnrs)
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "measure", None)  # this process measures nothing
        assert evaluate_folder(*folders, evaluator, devices=2).rows == alone.rows
    sr, hq = (from_uint8(read_image(folder / "3.png"))[None] for folder in folders)
    assert evaluator.rows(sr, hq, ["3"])[0] == alone.rows[3]


def test_every_worker_takes_the_next_gpu_and_what_the_evaluator_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[dict] = []
    monkeypatch.setattr(module, "Evaluator", lambda **arguments: made.append(arguments))
    monkeypatch.setattr(module, "_worker", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    evaluator = Evaluator(PROTOCOLS["whole-image-v1"], metrics=["ssim", "psnr"], weights_dir=tmp_path)
    rank = multiprocessing.Value("i", 0)
    for device in ("cuda", "cuda", "cuda", "cpu"):
        module._start_worker(evaluator.recipe, device, rank)
    assert [arguments.pop("device") for arguments in made] == ["cuda:0", "cuda:1", "cuda:0", "cpu"]
    recipe = {"protocol": evaluator.protocol, "metrics": ["psnr", "ssim"], "weights_dir": tmp_path}
    assert made == [recipe | {"has_hq": True}] * 4
    evaluator.device = torch.device("cuda:1")
    with pytest.raises(UsageError, match="name the device cuda, not cuda:1"):
        list(module._vectors([], evaluator, 2))


def test_endings_go_and_what_is_told_is_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for path in folders[0].iterdir():
        path.rename(path.with_stem(f"{path.stem}_LR4"))
    evaluator = Evaluator(WEIGHT_FREE_V1, "cpu:0", metrics=["psnr_y"])
    found = evaluate_folder(*folders, evaluator, strip=["_LR4"], data="realsr", more={"made_by": "x"})
    assert (found.keys, found.data) == (tuple("0123456"), "realsr")
    assert found.provenance["device"] == "cpu:0"
    assert found.provenance["made_by"] == "x"
    assert found.provenance["weights"] == {}


def test_a_set_without_hq_takes_what_needs_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    protocol = PROTOCOLS["whole-image-v1"]
    with pytest.raises(UsageError, match="psnr compares with hq, and this set has none"):
        Evaluator(protocol, metrics=["psnr"], has_hq=False)
    nothing = Evaluator(protocol, missing="skip", weights_dir=tmp_path, has_hq=False)
    assert nothing.skipped["psnr"] == "needs hq"
    assert "lacks niqe_modelparameters.mat (https://huggingface.co" in nothing.skipped["niqe"]
    with pytest.raises(UsageError, match="no metric of whole-image-v1 can be taken: psnr: needs hq; .*niqe"):
        evaluate_folder(folders[0], None, nothing)
    with pytest.raises(UsageError, match="'0' has no hq, but the evaluator was made with has_hq=True"):
        evaluate_folder(folders[0], None, Evaluator(WEIGHT_FREE_V1))


def test_sizes_that_the_protocol_does_not_measure_are_refused(folders: tuple[Path, Path]) -> None:
    crops = Evaluator(PROTOCOLS["stablesr-crops-v1"], metrics=["psnr"])
    with pytest.raises(UsageError, match="0.png is 64x48 px; stablesr-crops-v1 measures 512x512 px"):
        evaluate_folder(*folders, crops)


def test_a_failure_names_its_image(folders: tuple[Path, Path]) -> None:
    evaluator = Evaluator(WEIGHT_FREE_V1, metrics=["psnr_y"])
    write_png(np.zeros((8, 8, 3), np.uint8), folders[0] / "4.png")
    with pytest.raises(UsageError, match=r"sr/4.png is 8x8 px, .*hq/4.png 64x48 px: metrics compare equal sizes"):
        evaluate_folder(*folders, evaluator)
    (folders[0] / "4.png").write_bytes(b"no image")
    with pytest.raises(MegaSRError, match="4.png"):
        evaluate_folder(*folders, evaluator)
    with pytest.raises(UsageError, match="devices is 0, must be at least 1"):
        evaluate_folder(*folders, evaluator, devices=0)


def test_an_image_too_small_for_a_metric_names_metric_image_and_size(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write_png(np.zeros((6, 9, 3), np.uint8), folder / "5.png")
    with pytest.raises(MegaSRError, match="ssim_y cannot be taken of '5' \\(9x6 px\\): its window is 11x11 px"):
        evaluate_folder(*folders, Evaluator(WEIGHT_FREE_V1, metrics=["ssim_y"]))
