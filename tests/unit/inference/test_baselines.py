"""Baselines: RRDBNet against its published forward pass, tiles, and the two commands that measure and show them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megasr import cli
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluator, read_evaluation
from megasr.evaluation.folders import evaluate_folder
from megasr.evaluation.pairing import keyed_images
from megasr.evaluation.protocol import get_protocol
from megasr.files import file_sha256
from megasr.images import from_uint8, read_image, to_uint8, upsample_lq, write_png
from megasr.inference import baselines
from megasr.inference.baselines import load_rrdbnet, restore_folder, restore_tiled
from megasr.inference.tiling import Tiling
from tests.helpers.extractor_checkpoints import random_pictures
from tests.helpers.rrdb import State, rrdb_state
from tests.helpers.shared import shared


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"params_ema": {name: value.half() for name, value in rrdb_state().items()}}, tmp_path / "rrdb.pth")
    return tmp_path / "rrdb.pth"


def plain_rrdb(state: State, x: torch.Tensor) -> torch.Tensor:
    """The published forward pass, one operation after another."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def active(x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, 0.2)

    first = h = conv("conv_first", x)
    for block in range(len({name.split(".")[1] for name in state if name.startswith("body")})):
        of_block = h
        for dense in (1, 2, 3):
            maps, name = [h], f"body.{block}.rdb{dense}"
            for number in (1, 2, 3, 4):
                maps.append(active(conv(f"{name}.conv{number}", torch.cat(maps, 1))))
            h = conv(f"{name}.conv5", torch.cat(maps, 1)) * 0.2 + h
        h = h * 0.2 + of_block
    h = conv("conv_body", h) + first
    for name in ("conv_up1", "conv_up2"):
        h = active(conv(name, F.interpolate(h, scale_factor=2, mode="nearest")))
    return conv("conv_last", active(conv("conv_hr", h)))


def test_equals_the_published_forward_pass(checkpoint: Path) -> None:
    path, network = load_rrdbnet(str(checkpoint))
    state = {name: value.half().float() for name, value in rrdb_state().items()}
    assert path == checkpoint and set(network.state_dict()) == set(state)
    lq = random_pictures(1, 19, 22)
    found = network(lq)
    assert found.shape == (1, 3, 76, 88)
    torch.testing.assert_close(found, plain_rrdb(state, lq), atol=1e-5, rtol=1e-5)
    assert found.std() > 0.01


def test_an_image_larger_than_a_tile_is_blended_from_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(rrdb_state(blocks=1), tmp_path / "one.pth")  # it sees 19 px of lq to each side
    _, network = load_rrdbnet(str(tmp_path / "one.pth"))
    lq, seen = random_pictures(1, 40, 61), []
    whole = restore_tiled(network, lq)
    network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-2:]))
    monkeypatch.setattr(baselines, "_TILING", Tiling(size=160, overlap=64, batch=1))
    tiled = restore_tiled(network, lq)
    assert seen == [(40, 40), (40, 40)] and tiled.shape == whole.shape == (1, 3, 160, 244)
    torch.testing.assert_close(tiled[..., :80], whole[..., :80], atol=1e-5, rtol=0)
    assert 1e-5 < (tiled - whole)[..., 80:].abs().mean() < 0.02 < whole.std()  # near its end a tile sees zeros


def test_what_is_no_rrdbnet_of_x4_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    state = rrdb_state()
    other = tmp_path / "other.pth"
    for wrong, message in (
        ({"model.0.weight": torch.zeros(1)}, "has no conv_first.weight"),
        (state | {"conv_first.weight": torch.zeros(8, 12, 3, 3)}, "size mismatch for conv_first.weight"),  # x2plus
        ({name: value for name, value in state.items() if name != "conv_hr.bias"}, "Missing key.*conv_hr.bias"),
    ):
        torch.save({"params": wrong}, other)
        with pytest.raises(MegaSRError, match=rf"RRDBNet .*other.pth cannot be used: .*{message}"):
            load_rrdbnet(str(other))
    write_png(to_uint8(random_pictures(1, 8, 8)[0]), tmp_path / "lq" / "a.png")
    lq = keyed_images(tmp_path / "lq")
    with pytest.raises(UsageError, match="rrdb.pth restores x4, these images are x8"):
        restore_folder(str(checkpoint), lq, tmp_path / "sr", scale_factor=8)
    torch.save({"params": state | {"conv_last.bias": torch.full((3,), torch.nan)}}, other)
    with pytest.raises(MegaSRError, match="other.pth: sr is not finite"):
        restore_folder(str(other), lq, tmp_path / "sr", scale_factor=4)
    with pytest.raises(MegaSRError, match="realesrgan-x4plus is not on this machine. Fetch it with `megasr weights"):
        restore_folder("realesrgan-x4plus", lq, tmp_path / "sr", scale_factor=4)
    assert not (tmp_path / "sr").exists()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two pairs of lq and hq, x4."""
    for number in range(2):
        hq = random_pictures(1, 96, 96, seed=number)[0]
        write_png(to_uint8(hq), tmp_path / "hq" / f"{number}_HR.png")
        write_png(to_uint8(F.avg_pool2d(hq, 4)), tmp_path / "lq" / f"{number}_LR.png")
    return tmp_path / "lq", tmp_path / "hq"


def test_evaluate_measures_baselines_by_name(
    folders: tuple[Path, Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lq, hq = folders
    measure = ["--lq", str(lq), "--hq", str(hq), "--strip", "_LR", "_HR", "--metrics", "psnr_y"]
    table, found = tmp_path / "table.md", tmp_path / "found.json"
    assert cli.main(["evaluate", "bicubic", str(checkpoint), *measure, "--out", str(table)]) == 0
    assert "| bicubic" in table.read_text() and "| rrdb" in table.read_text()
    assert cli.main(["evaluate", str(checkpoint), *measure, "--out", str(found)]) == 0
    evaluation = read_evaluation(found)
    assert evaluation.keys == ("0", "1")
    assert evaluation.provenance["made_by"] == {"baseline": str(checkpoint), "sha256": file_sha256(checkpoint)[:16]}
    assert cli.main(["evaluate", "bicubic", *measure, "--out", str(found)]) == 0
    # What the baseline makes, measured by hand.
    for key, path in keyed_images(lq, ["_LR"]).items():
        write_png(to_uint8(upsample_lq(from_uint8(read_image(path))[None], 4)[0]), tmp_path / "own" / f"{key}.png")
    own = evaluate_folder(
        tmp_path / "own", hq, Evaluator(get_protocol("weight-free-v1"), metrics=["psnr_y"]), strip=["_HR"]
    )
    assert read_evaluation(found).means == own.means
    assert cli.main(["compare", "bicubic", str(tmp_path / "own"), *measure, "--out", str(tmp_path / "page.html")]) == 0
    assert "2 images, 2 methods" in capsys.readouterr().out


def test_what_a_baseline_cannot_restore_is_said_before_it_restores(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lq, hq = folders
    strip = ["--strip", "_LR", "_HR"]
    write_png(to_uint8(random_pictures(1, 50, 96)[0]), tmp_path / "odd" / "0_HR.png")
    write_png(to_uint8(random_pictures(1, 96, 96)[0]), tmp_path / "odd" / "1_HR.png")
    (tmp_path / "sr").mkdir()
    for options, says in [
        (["bicubic", "--hq", str(hq)], "bicubic is a baseline, not a folder here: name the images that it restores"),
        (["bicubic", "--lq", str(lq), "--hq", str(tmp_path / "odd")], "'0' is 24x24 px, its hq 96x50 px: not x2 of it"),
        (["bicubic", "--lq", str(lq), "--hq", str(hq), "--data", "drealsr", "--metrics", "psnr"], "measures 512x512"),
        (["bicubic", "--lq", str(hq), "--hq", str(hq)], "lq of '0' is as large as its hq: is --lq the folder of lq?"),
        ([str(hq), "--lq", str(lq), "--hq", str(hq)], "--lq: there is no baseline among the SR"),
        (
            ["bicubc", "--lq", str(lq), "--hq", str(hq)],
            "bicubc: no such folder; unknown baseline 'bicubc'; did you mean bicubic?",
        ),
        (["realesrgan-x4", "--lq", str(lq)], "did you mean realesrgan-x4plus?"),
        (["mine", "--hq", str(hq)], "mine: no such folder in"),
    ]:
        assert cli.main(["evaluate", *options, *strip]) == 2, options
        assert says in capsys.readouterr().err
    assert cli.main(["compare", "bicubc", str(hq), "--out", str(tmp_path / "page.html")]) == 2
    assert "did you mean bicubic?" in capsys.readouterr().err


def test_missing_weights_of_metrics_are_said_before_a_baseline_restores(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "restore_folder", None)
    monkeypatch.setattr("megasr.evaluation.metrics.describe_missing", lambda weights, folder: "lacks a file")
    lq, hq = folders
    given = ["--lq", str(lq), "--hq", str(hq), "--strip", "_LR", "_HR", "--metrics", "lpips", "--protocol", "paired-v1"]
    assert cli.main(["evaluate", "bicubic", *given]) == 1
    assert "weights of metrics are missing: lpips lacks a file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_numbers_of_real_esrgan(tmp_path: Path) -> None:
    """On 40 DRealSR photographs; the paper's table of 93 has 28.64, 0.8053 and 0.2847."""
    weights, data = shared("weights", "realesrgan", "RealESRGAN_x4plus.fp16.pth"), shared("data", "drealsr")
    restore_folder(str(weights), keyed_images(data / "lq"), tmp_path, scale_factor=4)
    evaluator = Evaluator(
        get_protocol("stablesr-crops-v1"),
        metrics=["psnr", "ssim", "lpips"],
        weights_dir=shared("weights", "lpips"),
    )
    found = evaluate_folder(tmp_path, data / "hq", evaluator).means
    assert found["psnr"] == pytest.approx(28.19, abs=0.006)
    assert found["ssim"] == pytest.approx(0.8075, abs=6e-5)
    assert found["lpips"] == pytest.approx(0.2785, abs=6e-5)


def test_the_public_weights_load_and_sharpen() -> None:
    weights, data = shared("weights", "realesrgan", "RealESRGAN_x4plus.fp16.pth"), shared("data", "drealsr")
    _, network = load_rrdbnet(str(weights))
    assert sum(value.numel() for value in network.parameters()) == 16_697_987
    lq = from_uint8(read_image(sorted((data / "lq").iterdir())[0]))[None, :, 40:72, 40:72]
    sr = restore_tiled(network, lq)
    torch.testing.assert_close(sr, plain_rrdb(network.state_dict(), lq).clamp(0, 1), atol=1e-4, rtol=0)
    assert (sr - upsample_lq(lq, 4)).abs().mean() < 0.05  # the same picture
