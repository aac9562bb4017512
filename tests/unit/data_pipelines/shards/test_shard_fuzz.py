"""Whatever happens to the files of a set: what is read is right, what is not read is counted, nothing else happens."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.shards.fields import IMAGE_FIELDS
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import Member, dump_index, index_name, load_index, scan_tar
from data_pipelines.workers import ErrorBudget, read_or_next
from megasr.errors import MegaSRError
from megasr.images import decode_image
from megasr.rng import numpy_generator
from tests.helpers.shard_sets import Files, encoded, make_shards, pixels

SIZES = (4, 5, 3)
SAMPLES = sum(SIZES)
CASES_PER_KIND = 8
TAR = "shard-000001.tar"
INDEX = index_name(TAR)
Mutation = Callable[[Path, np.random.Generator], None]


def make_sample(number: int) -> tuple[str, Files]:
    """JPEGs too: they have no checksum of their own."""
    suffix = ("png", "jpg")[number % 2]
    return f"image {number}", {suffix: encoded(pixels(number, 30, 40), f".{suffix}"), "txt": f"tag {number}".encode()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    make_shards(folder, SIZES, make_sample)
    return folder


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[np.ndarray, str]]:
    made = [make_sample(number) for number in range(SAMPLES)]
    found = {}
    for key, files in made:
        content = next(files[name] for name in IMAGE_FIELDS if name in files)
        found[key] = decode_image(content, key), files["txt"].decode()
    return found


def flip_bits(name: str) -> Mutation:
    def mutate(folder: Path, rng: np.random.Generator) -> None:
        content = bytearray((folder / name).read_bytes())
        for place in rng.integers(len(content), size=rng.integers(1, 9)):
            content[place] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(content)

    return mutate


def truncate(name: str) -> Mutation:
    def mutate(folder: Path, rng: np.random.Generator) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: rng.integers(len(content))])

    return mutate


def blank(folder: Path, rng: np.random.Generator) -> None:
    """A stretch that the disk gives back as zeros."""
    content = bytearray((folder / TAR).read_bytes())
    begin = int(rng.integers(len(content) - 4096))
    content[begin : begin + 4096] = bytes(4096)
    (folder / TAR).write_bytes(content)


def delete_file(folder: Path, rng: np.random.Generator) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    (folder / names[rng.integers(len(names))]).unlink()


def member_stretches(folder: Path) -> list[tuple[int, int]]:
    """(begin, end) of every member with its header and padding."""
    with (folder / TAR).open("rb") as file:
        samples = scan_tar(file, TAR)
    members = sorted(member for sample in samples for member in sample.files.values())
    return [(m.offset - 512, m.offset + -(-m.size // 512) * 512) for m in members]


def swap_members(folder: Path, rng: np.random.Generator) -> None:
    content, stretches = (folder / TAR).read_bytes(), member_stretches(folder)
    one, other = sorted(rng.choice(len(stretches), 2, replace=False))
    (a, b), (c, d) = stretches[one], stretches[other]
    (folder / TAR).write_bytes(content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:])


def delete_member(folder: Path, rng: np.random.Generator) -> None:
    content, stretches = (folder / TAR).read_bytes(), member_stretches(folder)
    begin, end = stretches[rng.integers(len(stretches))]
    (folder / TAR).write_bytes(content[:begin] + content[end:])


def other_tar(folder: Path, rng: np.random.Generator) -> None:
    shutil.copy(folder / f"shard-00000{2 * rng.integers(2)}.tar", folder / TAR)


def edit_index(edit: Callable[[list, np.random.Generator], None]) -> Mutation:
    def mutate(folder: Path, rng: np.random.Generator) -> None:
        samples, sha256 = load_index((folder / INDEX).read_text(), INDEX)
        edit(samples, rng)
        (folder / INDEX).write_text(dump_index(samples, TAR, sha256))

    return mutate


def swap_rows(samples: list, rng: np.random.Generator) -> None:
    one, other = rng.choice(len(samples), 2, replace=False)
    samples[one], samples[other] = samples[other], samples[one]


def repeat_row(samples: list, rng: np.random.Generator) -> None:
    one, other = rng.choice(len(samples), 2, replace=False)
    samples[one] = samples[other]


def delete_row(samples: list, rng: np.random.Generator) -> None:
    del samples[rng.integers(len(samples))]


def wrong_place(samples: list, rng: np.random.Generator) -> None:
    files = samples[rng.integers(len(samples))].files
    field = sorted(files)[rng.integers(len(files))]
    place = list(files[field])
    place[rng.integers(2)] = int(rng.choice([0, 1, 511, 512, 5000, 10**6, 2**40, 2**70]))
    files[field] = Member(*place)


def delete_image(samples: list, rng: np.random.Generator) -> None:
    sample = samples[rng.integers(len(samples))]
    del sample.files[next(name for name in IMAGE_FIELDS if name in sample.files)]


def edit_manifest(folder: Path, rng: np.random.Generator) -> None:
    """A manifest that agrees with itself and not with the files."""
    content = json.loads((folder / MANIFEST).read_text())
    shard = content["shards"][rng.integers(len(content["shards"]))]
    field = ("name", "bytes", "sha256", "samples")[rng.integers(4)]
    if field == "name":
        shard["name"] = "shard-000009.tar"
    elif field == "sha256":
        shard["sha256"] = shard["sha256"][::-1]
    else:
        change = int(rng.integers(1, 3))
        shard[field] -= change
        content[field] -= change
    (folder / MANIFEST).write_text(json.dumps(content))


KINDS: dict[str, Mutation] = {
    "tar bits": flip_bits(TAR),
    "tar truncated": truncate(TAR),
    "tar blanked": blank,
    "file deleted": delete_file,
    "members swapped": swap_members,
    "member deleted": delete_member,
    "other tar": other_tar,
    "index bits": flip_bits(INDEX),
    "index truncated": truncate(INDEX),
    "index rows swapped": edit_index(swap_rows),
    "index row repeated": edit_index(repeat_row),
    "index row deleted": edit_index(delete_row),
    "index place wrong": edit_index(wrong_place),
    "index image deleted": edit_index(delete_image),
    "manifest bits": flip_bits(MANIFEST),
    "manifest truncated": truncate(MANIFEST),
    "manifest edited": edit_manifest,
}
HARMLESS = {"index rows swapped"}


@pytest.mark.parametrize("kind", KINDS)
def test_right_or_counted(original: Path, expected: dict, tmp_path: Path, kind: str) -> None:
    outcome: Counter[str] = Counter()
    for case in range(CASES_PER_KIND):
        folder = tmp_path / str(case)
        shutil.copytree(original, folder)
        KINDS[kind](folder, numpy_generator(case, "fuzz", kind))
        try:
            source = ShardSource(str(folder), shuffle_shards=2)
        except MegaSRError as error:
            assert "manifest" in kind, error
            outcome["sets refused"] += 1
            continue
        outcome += read_all(source, expected)
    print(f"\n{kind:20} {CASES_PER_KIND} sets: " + ", ".join(f"{name} {n}" for name, n in sorted(outcome.items())))
    damaged = outcome.total() - outcome["kept"]
    assert (damaged == 0) == (kind in HARMLESS)


def read_all(source: ShardSource, expected: dict) -> Counter[str]:
    """What became of every image of one epoch: kept, or the reason of its loss."""
    kept, lost = set(), ErrorBudget(1.0, len(source))
    for draw in range(len(source)):
        sample = read_or_next(source, draw, seed=0, limit=len(source))
        pixels, tags = expected[sample.key]
        assert np.array_equal(sample.hq, pixels)
        assert sample.tags == tags
        lost.add(sample.skipped)
        if not sample.skipped:
            assert sample.key not in kept
            kept.add(sample.key)
    assert len(kept) + len(lost.damaged) == len(source), "kept + lost == expected"
    return Counter(kept=len(kept)) + Counter(lost.damaged.values())
