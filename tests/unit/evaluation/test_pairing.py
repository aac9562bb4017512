"""Pairs by name: what is missing, extra or there twice is listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megasr.errors import UsageError
from megasr.evaluation.pairing import Pair, keyed_images, pair_by_name
from megasr.images import write_png


def _folder(folder: Path, *names: str) -> Path:
    for name in names:
        write_png(np.zeros((2, 2, 3), np.uint8), folder / name)
    return folder


def test_pairs_are_by_name_whatever_the_order_or_ending(tmp_path: Path) -> None:
    sr = _folder(tmp_path / "sr", "b_LR4.png", "a.webp", "in/c.png")
    hq = _folder(tmp_path / "hq", "a.png", "b_HR.png", "in/c.bmp")
    assert pair_by_name(sr, hq, ["_LR4", "_HR"]) == [
        Pair("a", sr / "a.webp", hq / "a.png"),
        Pair("b", sr / "b_LR4.png", hq / "b_HR.png"),
        Pair("in/c", sr / "in/c.png", hq / "in/c.bmp"),
    ]
    assert list(keyed_images(_folder(tmp_path / "sorted", "a-1.png", "a.png"))) == ["a", "a-1"]  # by key, not by path
    assert [pair.hq for pair in pair_by_name(sr, None)] == [None] * 3


def test_what_is_missing_on_either_side_is_listed(tmp_path: Path) -> None:
    sr, hq = _folder(tmp_path / "sr", "a.png", "x.png"), _folder(tmp_path / "hq", "a.png", "b.png", "c.png")
    with pytest.raises(UsageError, match=r"sr lacks b, c; .*hq lacks x$"):
        pair_by_name(sr, hq)


def test_a_long_list_is_cut_and_counted(tmp_path: Path) -> None:
    sr, hq = _folder(tmp_path / "sr", "a.png"), _folder(tmp_path / "hq", "a.png", *(f"{i:02}.png" for i in range(20)))
    with pytest.raises(UsageError, match="lacks 00, .*, 19$"):
        pair_by_name(sr, hq)
    with pytest.raises(UsageError, match="lacks 00, .*, 19 and 5 more$"):
        pair_by_name(sr, _folder(hq, *(f"{i:02}.png" for i in range(20, 25))))


def test_names_that_have_nothing_in_common_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="taken off with --strip"):
        pair_by_name(_folder(tmp_path / "sr", "a_LR4.png"), _folder(tmp_path / "hq", "a_HR.png"))


def test_one_name_twice_is_an_error_that_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="files of one name: a.bmp and a.png"):
        keyed_images(_folder(tmp_path / "sr", "a.png", "a.bmp", "b.png"))
    with pytest.raises(UsageError, match="a.png and a_HR.png"):
        keyed_images(_folder(tmp_path / "hq", "a.png", "a_HR.png"), ["_HR"])


def test_a_name_is_never_stripped_to_nothing_and_the_longest_ending_goes(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "sr", "_HR.png", "in/_HR.png", "b_x4_HR.png")
    assert list(keyed_images(folder, ["_HR", "_x4_HR"])) == ["_HR", "b", "in/_HR"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        pair_by_name(tmp_path / "nowhere", None)
