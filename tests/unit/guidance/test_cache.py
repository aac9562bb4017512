"""Maps on disk: made once, and never a wrong one."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import warnings
from pathlib import Path

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.sources import MapCache

NAME, FINGERPRINT = "depth", "weights 1"


class Extractor:
    """Maps with all bits of the mantissa in use; it remembers the sizes of the batches that it got."""

    def __init__(self, channels: int = 1) -> None:
        self.batches: list[int] = []
        self._channels = channels

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(image))
        return (image[:, : self._channels] / 3).sqrt()


def photos(count: int, seed: int = 0, size: tuple[int, int] = (12, 10)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_map_is_made_once_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    image, extractor = photos(3), Extractor(3)
    image[0, 0, 0, :2] = torch.tensor([0.0, 1e-42])  # a denormal is a value too
    expected = Extractor(3)(image)
    for _ in range(2):
        made = MapCache(tmp_path / "new" / "cache").get_or_make(image, NAME, FINGERPRINT, extractor)
        assert made.dtype == torch.float32
        assert torch.equal(made, expected)
    assert extractor.batches == [3]
    assert len(files(tmp_path)) == 3


def test_only_what_is_missing_is_made_in_one_batch(tmp_path: Path) -> None:
    image, extractor, cache = photos(5), Extractor(), MapCache(tmp_path)
    cache.get_or_make(image[[1, 3]], NAME, FINGERPRINT, extractor)
    made = cache.get_or_make(image[[4, 3, 0, 1, 2, 0]], NAME, FINGERPRINT, extractor)
    assert torch.equal(made, Extractor()(image)[[4, 3, 0, 1, 2, 0]])
    assert extractor.batches == [2, 3], "an image that comes twice is made once"


def test_pixels_shape_name_and_fingerprint_tell_maps_apart(tmp_path: Path) -> None:
    cache, image = MapCache(tmp_path), photos(1)
    nudged = image.clone()
    nudged[0, 2, 11, 9] = torch.nextafter(nudged[0, 2, 11, 9], torch.tensor(2.0))
    cases = [
        (image, NAME, FINGERPRINT),
        (nudged, NAME, FINGERPRINT),
        (image.view(1, 3, 10, 12), NAME, FINGERPRINT),  # the same bytes in another shape
        (image, "hed", FINGERPRINT),
        (image, NAME, "weights 2"),
        (image, NAME + FINGERPRINT, ""),
    ]
    for number, (given, name, fingerprint) in enumerate(cases):
        value = number / 8
        cache.get_or_make(given, name, fingerprint, lambda image, value=value: torch.full_like(image[:, :1], value))
    never = Extractor()
    found = [cache.get_or_make(*case, never).unique().item() for case in cases]
    assert found == [number / 8 for number in range(len(cases))]
    assert never.batches == []


def test_a_file_cut_short_is_made_again(tmp_path: Path) -> None:
    cache, image = MapCache(tmp_path), photos(1)
    expected = cache.get_or_make(image, NAME, FINGERPRINT, Extractor())
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for length in (0, 1, 31, 32, 33, 44, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        extractor = Extractor()
        assert torch.equal(cache.get_or_make(image, NAME, FINGERPRINT, extractor), expected)
        assert extractor.batches == [1]
        assert path.read_bytes() == whole


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    cache, image = MapCache(tmp_path), photos(1, size=(2, 2))
    expected = cache.get_or_make(image, NAME, FINGERPRINT, Extractor())
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        extractor = Extractor()
        assert torch.equal(cache.get_or_make(image, NAME, FINGERPRINT, extractor), expected)
        assert extractor.batches == [1], place
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"x")
    assert torch.equal(cache.get_or_make(image, NAME, FINGERPRINT, extractor), expected)
    assert extractor.batches == [1, 1]


def test_a_file_in_anothers_place_is_not_its_map(tmp_path: Path) -> None:
    cache, image, extractor = MapCache(tmp_path), photos(2), Extractor()
    expected = cache.get_or_make(image, NAME, FINGERPRINT, extractor)
    first, second = files(tmp_path)
    first.write_bytes(second.read_bytes())
    assert torch.equal(cache.get_or_make(image, NAME, FINGERPRINT, extractor), expected)
    assert extractor.batches == [2, 1]


def _work(folder: Path, start: multiprocessing.synchronize.Barrier) -> None:
    torch.set_num_threads(1)
    cache, image = MapCache(folder), photos(12)
    expected = Extractor()(image)
    for round_ in range(2):
        start.wait(30)
        for row in range(12):
            maps = cache.get_or_make(image[row : row + 1], NAME, f"round {round_}", Extractor())
            if not torch.equal(maps[0], expected[row]):
                os._exit(3)


def test_processes_that_make_the_same_maps_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=_work, args=(tmp_path, start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(files(tmp_path)) == 2 * 12, "and no parts"
    never = Extractor()
    for round_ in range(2):
        MapCache(tmp_path).get_or_make(photos(12), NAME, f"round {round_}", never)
    assert never.batches == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MegaSRError, match=rf"^map cache {folder}: cannot write there: [^\n]+; choose another"):
            MapCache(folder)
    with pytest.raises(MegaSRError, match=r"^map cache /proc/self: cannot write there: "):
        MapCache(Path("/proc/self"))  # it exists, and not even root may write to it


def test_a_full_disk_is_said_once_and_the_run_goes_on(tmp_path: Path) -> None:
    cache, image, extractor = MapCache(tmp_path), photos(4), Extractor()
    kept = cache.get_or_make(image[:1], NAME, FINGERPRINT, extractor)
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))  # no file may grow: the system's own error of a write
    try:
        with pytest.warns(UserWarning) as said:
            for _ in range(2):
                made = cache.get_or_make(image, NAME, FINGERPRINT, extractor)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(said) == 1
    assert "no more maps are kept" in str(said[0].message)
    assert torch.equal(made, Extractor()(image))
    assert torch.equal(made[:1], kept)
    assert extractor.batches == [1, 3, 3], "what was kept is still read"
    assert len(files(tmp_path)) == 1, "and no parts"


def test_a_failed_write_beside_a_faster_process_is_no_full_disk(tmp_path: Path) -> None:
    image, other = photos(2), MapCache(tmp_path)

    def slow(image: torch.Tensor) -> torch.Tensor:
        """Meanwhile a process with the same number on another machine keeps the map and takes the temporary file."""
        maps = other.get_or_make(image, NAME, FINGERPRINT, Extractor())
        for path in files(tmp_path):
            path.with_name(f"{path.name}.{os.getpid()}.part").mkdir()
        return maps

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = MapCache(tmp_path).get_or_make(image, NAME, FINGERPRINT, slow)
    assert torch.equal(made, Extractor()(image))


def test_no_folder_is_crowded(tmp_path: Path) -> None:
    MapCache(tmp_path).get_or_make(photos(40, size=(2, 2)), NAME, FINGERPRINT, Extractor())
    assert {len(path.relative_to(tmp_path).parts) for path in files(tmp_path)} == {3}
    assert len(list(tmp_path.iterdir())) > 20


def test_what_is_no_map_is_not_kept(tmp_path: Path) -> None:
    cache, image = MapCache(tmp_path), photos(2)
    for wrong in (image[:1], image[..., :5], image[0], image + 1, image * torch.nan):
        with pytest.raises(UsageError, match="map depth: "):
            cache.get_or_make(image, NAME, FINGERPRINT, lambda _, wrong=wrong: wrong)
    assert files(tmp_path) == []


@pytest.mark.parametrize("image", [torch.zeros(3, 4, 4), torch.zeros(1, 1, 4, 4), photos(1).half(), photos(1).double()])
def test_only_float32_images_have_a_key(tmp_path: Path, image: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="map cache, depth"):
        MapCache(tmp_path).get_or_make(image, NAME, FINGERPRINT, Extractor())


def test_an_extractor_that_changed_behind_its_fingerprint_is_found_out(tmp_path: Path) -> None:
    cache, image = MapCache(tmp_path), photos(2)
    cache.get_or_make(image[:1], NAME, FINGERPRINT, Extractor(1))
    with pytest.raises(UsageError, match=r"depth maps of extractor 'weights 1' differ in channels; "):
        cache.get_or_make(image, NAME, FINGERPRINT, Extractor(3))


def test_maps_carry_no_gradient(tmp_path: Path) -> None:
    image = photos(1).requires_grad_()
    for _ in range(2):
        assert not MapCache(tmp_path).get_or_make(image, NAME, FINGERPRINT, Extractor()).requires_grad
