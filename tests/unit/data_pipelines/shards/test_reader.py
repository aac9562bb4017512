"""Every image exactly once, whoever reads; damage is found, named and nothing else."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.samples import DrawSampler, Sample, SampleSet, UnusableSampleError
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.reader import ShardOrder, ShardSource
from data_pipelines.shards.tar import index_name
from megasr.errors import MegaSRError, UsageError
from tests.helpers.shard_sets import Files, encoded, make_shards, pixels, sample_files

SIZES = (7, 5, 8, 4)  # 24 samples
TAR, INDEX = "shard-000001.tar", index_name("shard-000001.tar")
KEYS = [sample_files(number)[0] for number in range(sum(SIZES))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shards")
    make_shards(made, SIZES)
    return made


def test_what_was_packed_is_read(folder: Path) -> None:
    source = ShardSource(str(folder))
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert len(copy) == len(KEYS)
        for number, key in enumerate(KEYS):
            sample = copy.read(number)
            assert (sample.key, sample.tags, sample.maps) == (key, f"tag {number}", {})
            assert np.array_equal(sample.hq, pixels(number))
    with pytest.raises(IndexError):
        source.read(len(KEYS))


def test_maps_and_unusual_names(tmp_path: Path) -> None:
    keys = ["a.b~c/__d", "ünï/" + "long " * 40, "plain"]
    grey = np.arange(480, dtype=np.uint16).reshape(20, 24) * 130

    def make(number: int) -> tuple[str, Files]:
        maps = {"map.heat.png": encoded(grey), "map.bump.png": encoded(pixels(number + 9))}
        return keys[number], {"jpg": encoded(pixels(number), ".jpg"), **maps, "map.jpg": b"", "map.other.npy": b""}

    make_shards(tmp_path, [3], make)
    source = ShardSource(str(tmp_path))
    for number, key in enumerate(keys):
        sample = source.read(number)
        assert sample.key == key
        assert sample.tags == ""
        assert torch.equal(sample.maps["heat"], torch.from_numpy(grey / np.float32(65535))[None])
        expected = torch.from_numpy(pixels(number + 9)).permute(2, 0, 1) / 255
        assert torch.equal(sample.maps["bump"], expected)


def read_epoch(source: ShardSource, start: int, stop: int, world_size: int, workers: int, seed: int) -> list[str]:
    """The keys that all processes together see from draw `start` to `stop`."""
    samples = SampleSet(lambda draw: source.read(source.order(draw, seed)), 2**62)
    seen = []
    for rank in range(world_size):
        sampler = DrawSampler(lambda: start, stop - start, rank, world_size)
        loader = torch.utils.data.DataLoader(samples, 2, sampler=sampler, num_workers=workers, collate_fn=keys_of)
        seen += [key for batch in loader for key in batch]
    return seen


def keys_of(batch: list[Sample]) -> list[str]:
    return [sample.key for sample in batch]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (3, 1), (8, 0)])
def test_every_image_once_per_epoch(folder: Path, world_size: int, workers: int) -> None:
    source = ShardSource(str(folder), shuffle_shards=2)
    for epoch in (0, 5):
        start = epoch * len(KEYS)
        seen = read_epoch(source, start, start + len(KEYS), world_size, workers, seed=3)
        assert Counter(seen) == Counter(KEYS)


@pytest.mark.parametrize(("before", "stop", "after"), [((3, 1), 6, (2, 0)), ((2, 0), 20, (4, 0)), ((1, 0), 9, (3, 0))])
def test_resume_on_another_world_size(folder: Path, before: tuple[int, int], stop: int, after: tuple[int, int]) -> None:
    source = ShardSource(str(folder), shuffle_shards=2)
    seen = read_epoch(source, 0, stop, *before, seed=1)
    seen += read_epoch(ShardSource(str(folder), shuffle_shards=2), stop, len(KEYS), *after, seed=1)
    assert Counter(seen) == Counter(KEYS)


def test_order_is_shuffled_across_shards_and_inside_windows() -> None:
    sizes = [90 + shard % 21 for shard in range(60)]
    total, window = sum(sizes), 8
    order = ShardOrder(sizes, window)
    epochs = [[order(epoch * total + n, seed=7) for n in range(total)] for epoch in (0, 1)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    place = np.argsort(epochs[0]), np.argsort(epochs[1])
    for other in (np.arange(total), place[1]):
        # Independent places are a third of the length apart on average.
        assert 0.28 < np.abs(place[0] - other).mean() / total < 0.39
    begin, owner = 0, np.repeat(np.arange(len(sizes)), sizes)
    for window_size in (8, 8, 8, 8, 8, 8, 8, 4):
        shards = set(owner[epochs[0][begin : begin + 4 * 90]].tolist())
        end = begin + sum(sizes[shard] for shard in shards)
        assert len(shards) == window_size
        inside = np.array(epochs[0][begin:end])
        assert set(owner[inside].tolist()) == shards
        assert 0.45 < (np.diff(inside) > 0).mean() < 0.55, "ups and downs are equally likely in a shuffled window"
        begin = end
    assert begin == total
    again = pickle.loads(pickle.dumps(order))
    draws = range(0, 2 * total, 97)
    assert [again(draw, 7) for draw in reversed(draws)] == [order(draw, 7) for draw in reversed(draws)]
    assert [again(draw, 8) for draw in draws] != [order(draw, 7) for draw in draws]


def test_no_two_windows_or_epochs_are_shuffled_alike() -> None:
    order = ShardOrder([30] * 4, window=1)
    draws = [order(draw, seed=0) % 30 for draw in range(240)]
    assert len({tuple(draws[begin : begin + 30]) for begin in range(0, 240, 30)}) == 8


def test_an_epoch_loads_every_index_once_and_keeps_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path, [3] * 40)
    source = ShardSource(str(tmp_path), shuffle_shards=4)
    loaded: Counter[str] = Counter()
    read_all = source.storage.read_all

    def counting(name: str, version: str = "") -> bytes:
        loaded[name] += 1
        return read_all(name, version)

    monkeypatch.setattr(source.storage, "read_all", counting)
    for draw in range(len(source)):
        source.read(source.order(draw, seed=2))
    assert loaded == {index_name(shard.name): 1 for shard in source.manifest.shards}
    assert source._index.cache_info().currsize == 8


def cut_tar(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:6000])


def swap_tars(folder: Path) -> None:
    one, other = folder / "shard-000001.tar", folder / "shard-000002.tar"
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])


def swap_indices(folder: Path) -> None:
    one, other = (folder / index_name(f"shard-00000{n}.tar") for n in (1, 2))
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])


def pack_anew(folder: Path) -> None:
    """A tar and its index that belong together, and not to this manifest."""
    make_shards(folder / "new", SIZES, lambda number: sample_files(number + 100))
    for name in (TAR, INDEX):
        (folder / "new" / name).rename(folder / name)


def overwrite(text: bytes, by: bytes, name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert text in content
        (folder / name).write_bytes(content.replace(text, by))

    return change


SECOND = set(KEYS[7:12])
DAMAGE = {
    "truncated": (cut_tar, "truncated shard", set(KEYS[9:12])),
    "gone": (lambda folder: (folder / TAR).unlink(), "missing shard", SECOND),
    "no index": (lambda folder: (folder / INDEX).unlink(), "missing index", None),
    "bad index": (lambda folder: (folder / INDEX).write_bytes(b"\xff{"), "damaged index", None),
    "not an index": (lambda folder: (folder / INDEX).write_text("{}"), "damaged index", None),
    "tars swapped": (swap_tars, "damaged content|truncated shard", set(KEYS[7:20])),
    "packed anew": (pack_anew, "wrong index", None),
    "moved by a byte": (overwrite(b"\0\0\0tag 9", b"\0\0tag 9\0", TAR), "damaged content", {KEYS[9]}),
    "indices swapped": (swap_indices, "wrong index", None),
    "other tags": (overwrite(b"tag 9", b"tag 8", TAR), "damaged content", {KEYS[9]}),
    "other key in the index": (overwrite(b"image 009", b"image 099", INDEX), "damaged index", None),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_the_rest_is_read(tmp_path: Path, case: str) -> None:
    change, reason, lost = DAMAGE[case]
    make_shards(tmp_path, SIZES)
    change(tmp_path)
    source = ShardSource(str(tmp_path))
    kept, errors = {}, []
    for index in range(len(source)):
        try:
            kept[index] = source.read(index)
        except UnusableSampleError as error:
            errors.append(error)
    assert {error.reason for error in errors} == set(reason.split("|"))
    assert all(error.damaged for error in errors)
    if lost is None:  # without an index a sample has no name
        shards = ("shard-000001.tar", "shard-000002.tar") if case == "indices swapped" else ("shard-000001.tar",)
        assert {error.key.rpartition("#")[0] for error in errors} == set(shards)
    else:
        assert {error.key for error in errors} == lost
    assert len(kept) + len(errors) == len(KEYS)
    assert all(np.array_equal(sample.hq, pixels(index)) for index, sample in kept.items())


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"txt": b"only tags"}, "no image"),
        ({"png": b"no pixels"}, "unreadable image"),
        ({"png": b""}, "unreadable image"),
        ({"png": encoded(pixels(0)), "txt": b"\xff"}, "unreadable tags"),
        ({"png": encoded(pixels(0)), "map.heat.png": b""}, "unreadable map"),
        ({"png": encoded(pixels(0)), "map.heat.png": encoded(pixels(0, 9, 9))}, "unreadable map"),
        ({"png": encoded(pixels(0)), "map.heat.png": encoded(pixels(0))[:200]}, "unreadable map"),
    ],
)
def test_a_sample_packed_wrongly(tmp_path: Path, files: Files, reason: str) -> None:
    make_shards(tmp_path, [2], lambda number: sample_files(1) if number else ("bad", files))
    source = ShardSource(str(tmp_path))
    with pytest.raises(UnusableSampleError, match=f"^bad: {reason}"):
        source.read(0)
    assert np.array_equal(source.read(1).hq, pixels(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "not a shard set.*megasr shards pack"),
        (lambda path: path.write_bytes(b"\xff"), "not text"),
        (lambda path: path.write_text("{}"), "format"),
    ],
)
def test_no_usable_manifest(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    make_shards(tmp_path, [1])
    change(tmp_path / MANIFEST)
    with pytest.raises(MegaSRError, match=message):
        ShardSource(str(tmp_path))


def test_settings_that_cannot_work(tmp_path: Path) -> None:
    make_shards(tmp_path / "empty", [])
    with pytest.raises(MegaSRError, match="the set is empty"):
        ShardSource(str(tmp_path / "empty"))
    manifest = make_shards(tmp_path / "set", [2, 2, 2])
    with pytest.raises(UsageError, match="shuffle_shards must be at least 1, got 0"):
        ShardSource(str(tmp_path / "set"), shuffle_shards=0)
    pipe, room = f"pipe:cat {tmp_path}/set/{{name}}", 2.5 * manifest.shards[0].bytes / 1e9
    with pytest.raises(UsageError, match="raise cache_gb or lower shuffle_shards"):
        ShardSource(pipe, tmp_path / "cache", room)
    assert ShardSource(pipe, tmp_path / "cache", room, shuffle_shards=2).read(5).key == KEYS[5]


def test_the_fingerprint_tells_orders_apart(tmp_path: Path, folder: Path) -> None:
    make_shards(tmp_path, [7, 5, 8, 5])
    one = ShardSource(str(folder)).fingerprint
    assert one == ShardSource(str(folder)).fingerprint
    others = (ShardSource(str(folder), shuffle_shards=2).fingerprint, ShardSource(str(tmp_path)).fingerprint)
    assert len({one, *others}) == 3
