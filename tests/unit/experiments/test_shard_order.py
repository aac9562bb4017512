"""What the simulation of the shard loader says of a small set, and that it sees a loader which is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.datamodules import ShardDataModule
from data_pipelines.samples import DrawSampler
from data_pipelines.shards import reader
from data_pipelines.shards.reader import ShardSource
from experiments.benchmarks.shard_order import describe_set, draw_all, make_data, of_an_index, resume, show_some

SHARDS, SAMPLES, RANKS, WORKERS = 10, 31, 4, 3
TOTAL = SHARDS * SAMPLES  # in 25 steps of 4 x 3, and ten more draws


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    describe_set(tmp_path / "train", SHARDS, SAMPLES, 1)
    describe_set(tmp_path / "eval", 1, 5, 0)
    return tmp_path


@pytest.fixture
def data(folder: Path) -> ShardDataModule:
    return make_data(folder, batch_size=3, shuffle_shards=4)


def test_every_draw_goes_to_one_rank(data: ShardDataModule) -> None:
    drawn = draw_all(data, RANKS, WORKERS)
    assert drawn["draws_by_times"] == {"1": TOTAL}
    assert drawn["draws_of_a_rank"] == {"least": 75, "most": 75}
    assert drawn["draws_of_a_worker"] == {"least": 24, "most": 27}, "25 batches of 3 over three workers"


@pytest.mark.parametrize(("windows", "images"), [(1, 4), (2, 6), (9, 10)])
def test_every_image_of_a_window_is_shown_once(folder: Path, windows: int, images: int) -> None:
    shown = show_some(ShardSource(str(folder / "train"), shuffle_shards=4), 0, windows)
    assert (shown["windows"], shown["windows_looked_up"]) == (3, min(windows, 3))
    assert shown["shards_by_times"] == {"1": SHARDS}
    assert shown["images_by_times"] == {"1": images * SAMPLES}
    assert shown["images_of_other_windows"] == 0


@pytest.mark.parametrize("others", [2, 6])
def test_a_resumed_training_goes_on_with_the_next_draw(folder: Path, data: ShardDataModule, others: int) -> None:
    resumed = resume(data, make_data(folder, batch_size=3, shuffle_shards=4), RANKS, others, steps=11)
    assert resumed["first_draw"] == 11 * RANKS * 3
    assert resumed["same_ranks_bit_equal"]
    assert resumed["other_ranks_next_draws_once"]


def test_it_sees_ranks_that_share_draws(data: ShardDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = DrawSampler.__iter__
    monkeypatch.setattr(DrawSampler, "__iter__", lambda self: (draw // 2 for draw in draws(self)))
    assert draw_all(data, RANKS, WORKERS)["draws_by_times"].keys() != {"1"}


def test_it_sees_an_order_that_repeats_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    permuted = reader.permuted
    repeats = lambda position, *rest: permuted(position - position % 2 if "window" in rest else position, *rest)  # noqa: E731
    monkeypatch.setattr(reader, "permuted", repeats)
    shown = show_some(ShardSource(str(folder / "train"), shuffle_shards=4), 0, 3)
    assert shown["shards_by_times"] == {"1": SHARDS}
    assert shown["images_by_times"].keys() == {"0", "2"}


def test_a_resume_elsewhere_is_seen(folder: Path, data: ShardDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    again = make_data(folder, batch_size=3, shuffle_shards=4)
    load = again.load_state_dict
    later = lambda state: load(state | {"consumed_samples": state["consumed_samples"] + 1})  # noqa: E731
    monkeypatch.setattr(again, "load_state_dict", later)
    resumed = resume(data, again, RANKS, 2, steps=11)
    assert not resumed["same_ranks_bit_equal"]
    assert not resumed["other_ranks_next_draws_once"]


def test_an_opened_window_takes_less_memory_than_a_parsed_one(folder: Path) -> None:
    index = of_an_index(str(folder / "train"), window=4, rounds=1)
    assert index["samples"] == SAMPLES
    assert index["window_mib"] < index["window_parsed_mib"] / 2
