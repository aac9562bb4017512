"""Benchmark sets: the folders people have, what is wrong with the others, and the batches of both kinds of sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.benchmarks import BENCHMARKS, BenchmarkDataModule, check_layout
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.protocol import get_protocol, published_rows
from megasr.images import from_uint8, write_png


def fill(folder: Path, names: list[str], height: int, width: int | None = None) -> None:
    """One flat image under many names."""
    image = folder / f"{names[0]}.png"
    write_png(np.full((height, width or height, 3), 90, np.uint8), image)
    for name in names[1:]:
        (folder / f"{name}.png").write_bytes(image.read_bytes())


def drealsr(root: Path, count: int = 93) -> Path:
    names = [f"Canon_{i}_x1" for i in range(count)]
    fill(root / "test_LR", names, 128)
    fill(root / "test_HR", names, 512)
    return root


@pytest.mark.parametrize(
    ("name", "lq", "hq"),
    [
        ("realsr", "StableSR_testsets/RealSRVal_crop128/test_LR/{}_LR4", "test_HR/{}_LR4"),  # the zip, unpacked
        ("realsr", "test_LR/{}_LR4", "test_HR/{}_HR"),
        ("drealsr", "DrealSRVal_crop128/test_LR/{}_x1", "test_HR/{}_x1"),
        ("drealsr", "lq/{}_x4", "hq/{}_x1"),
        ("drealsr", "LR/{}", "HR/{}"),
        ("reallr200", "{}", None),
        ("reallr200", "RealLR200/{}", None),
        ("reallq250", "RealLQ250/lq/{}", None),
        ("reallq250", "test_LR/{}", None),
        ("screensr", "ScreenSR/LQ/{}", "HQ/{}"),
        ("realsr-x8", "StableSR_testsets/RealSRVal_crop128/test_LR/{}_LR4", None),
    ],
)
def test_layouts(tmp_path: Path, name: str, lq: str, hq: str | None) -> None:
    benchmark = BENCHMARKS[name]
    names = [f"{i:04}" for i in range(benchmark.count)]
    lq_file, size = tmp_path / lq, benchmark.lq_px or 100
    fill(lq_file.parent, [lq_file.name.format(key) for key in names], size)
    if hq is not None:
        hq_file = lq_file.parents[1] / hq
        fill(hq_file.parent, [hq_file.name.format(key) for key in names], size * 4)
    files = check_layout(name, tmp_path)
    assert [path for _, path in files.lq] == [Path(str(lq_file).format(key) + ".png") for key in names]
    assert {len(Path(key).parts) for key, _ in files.lq} == {1}, "keys do not depend on where the set lies"
    assert set(files.sizes) == {(size, size)}
    assert (files.pairs is None) == (hq is None)


def remove(root: Path) -> None:
    for side in ("test_LR", "test_HR"):
        (root / side / "Canon_7_x1.png").unlink()


def add(root: Path) -> None:
    for side, size in (("test_LR", 128), ("test_HR", 512)):
        fill(root / side, ["Canon_extra_x1"], size)


def rename(root: Path) -> None:
    (root / "test_HR" / "Canon_7_x1.png").rename(root / "test_HR" / "Canon_seven_x1.png")


def replace(side: str, size: int) -> Callable[[Path], None]:
    return lambda root: fill(root / side, ["Canon_7_x1"], size)


def whole_pair(root: Path) -> None:
    replace("test_LR", 132)(root)
    replace("test_HR", 528)(root)


def move_lq(root: Path) -> None:
    (root / "test_LR").rename(root / "input")


def add_layout(root: Path) -> None:
    (root / "lq").mkdir()
    (root / "gt").mkdir()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (remove, ["test_LR: 92 images, the set has 93", "data.allow_subset"]),
        (add, ["test_LR: 94 images, the set has 93"]),
        (rename, ["no hq called 'Canon_7'", "no lq called 'Canon_seven'"]),
        (replace("test_LR", 64), ["512x512 px is not 4 x 64x64 px"]),
        (replace("test_HR", 508), ["508x508 px is not 4 x 128x128 px"]),
        (whole_pair, ["1 lq are not of 128x128 px", "Canon_7_x1.png: 132x132 px", "whole photographs"]),
        (move_lq, ["holds input, test_HR; expected the folders test_LR+test_HR, lq+gt"]),
    ],
)
def test_what_is_wrong_is_said_and_where_the_set_is_found(
    tmp_path: Path, spoil: Callable[[Path], None], says: list[str]
) -> None:
    spoil(drealsr(tmp_path))
    with pytest.raises(UsageError) as error:
        check_layout("drealsr", tmp_path)
    for part in [*says, "drealsr is 93 lq of 128x128 px with hq of 512x512 px", "Iceclear/StableSR-TestSets"]:
        assert part in str(error.value)


def test_two_layouts_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    add_layout(drealsr(tmp_path))
    with pytest.raises(UsageError, match=r"is drealsr in test_LR\+test_HR or in lq\+gt"):
        check_layout("drealsr", tmp_path)


def test_a_part_of_a_set_is_taken_when_asked(tmp_path: Path) -> None:
    data = BenchmarkDataModule("drealsr", str(drealsr(tmp_path, 40)), allow_subset=True)
    assert (data.benchmark, data.benchmark_images) == ("drealsr", (40, 93))
    with pytest.raises(UsageError, match="40 images, the set has 93"):
        BenchmarkDataModule("drealsr", str(tmp_path))
    drealsr(tmp_path, 94)
    with pytest.raises(UsageError, match="94 images, the set has 93"):
        check_layout("drealsr", tmp_path, allow_subset=True)


def test_batches_with_hq(tmp_path: Path) -> None:
    data = BenchmarkDataModule("drealsr", str(drealsr(tmp_path)), batch_size=31)
    (tmp_path / "test_LR" / "Canon_0_x1.txt").write_text("dog")
    (tmp_path / "test_HR" / "Canon_0_x1.txt").write_text("dog, its name on a plate that lq does not show")
    (tmp_path / "test_HR" / "Canon_1_x1.txt").write_text("cat")
    data.setup("validate")
    batches = list(data.test_dataloader())
    assert [key for batch in batches for key in batch["keys"]] == data.eval_keys() == sorted(data.eval_keys())
    tags = {key: tag for batch in batches for key, tag in zip(batch["keys"], batch["tags"], strict=True) if tag}
    assert tags == {"Canon_0_x1": "dog"}, "none that lie beside hq"
    assert batches[2]["lq"].shape == (31, 3, 128, 128)
    assert batches[2]["hq"].shape == (31, 3, 512, 512)
    assert data.has_hq
    with pytest.raises(UsageError, match="not for training"):
        data.setup("fit")


def place(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 in which the first two channels say which pixel this is."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows, columns, np.zeros_like(rows)]).astype(np.uint8)


def test_batches_without_hq(tmp_path: Path) -> None:
    write_png(place(130, 140), tmp_path / "b.png")
    write_png(place(128, 200), tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("dog, ball")
    data = BenchmarkDataModule("reallr200", str(tmp_path), allow_subset=True)
    data.setup("test")
    first, second = data.test_dataloader()
    assert first.keys() == {"keys", "lq", "tags"}
    assert (first["keys"] + second["keys"], first["tags"]) == (data.eval_keys(), ["dog, ball"])
    assert torch.equal(second["lq"][0], from_uint8(place(130, 140)))
    assert not data.has_hq
    with pytest.raises(UsageError, match="has no hq"):
        data.setup("validate")
    with pytest.raises(UsageError, match=r"differ in size: set data.batch_size to 1"):
        BenchmarkDataModule("reallr200", str(tmp_path), allow_subset=True, batch_size=2)

    (crops,) = BenchmarkDataModule("reallr200-crop128", str(tmp_path), True, batch_size=2).test_dataloader()
    assert torch.equal(crops["lq"][1], from_uint8(place(130, 140)[1:129, 6:134]))
    write_png(place(127, 140), tmp_path / "c.png")
    with pytest.raises(UsageError, match=r"1 lq are not of at least 128x128 px:\n.*c.png: 140x127 px"):
        check_layout("reallr200-crop128", tmp_path, allow_subset=True)


def test_a_damaged_image_stops_the_evaluation(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b"], 256)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-40])
    with pytest.raises(MegaSRError, match="^b: unreadable"):
        list(BenchmarkDataModule("reallq250", str(tmp_path), allow_subset=True).test_dataloader())


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_set_fits_its_protocol_and_its_published_numbers(name: str) -> None:
    benchmark = BENCHMARKS[name]
    restored = benchmark.crop_px or benchmark.lq_px
    sr_px = None if restored is None else restored * benchmark.scale_factor
    assert get_protocol(benchmark.protocol).size_px in (sr_px, None)
    rows = [row for row in published_rows() if (row.data, row.protocol) == (name, benchmark.protocol)]
    assert {row.images for row in rows} <= {benchmark.count}
