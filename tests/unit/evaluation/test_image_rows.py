"""What several processes measured becomes what one would have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.image_rows import ImageRows

KEYS = ("b/1", "a", "c", "d", "e")
NAMES = ("psnr", "ssim")


def vector(key: str, shift: float = 0.0) -> list[float]:
    """Two metrics and a feature, which float32 cannot hold."""
    place = KEYS.index(key)
    return [20 + place / 3, 1e-300 * (place + 1), -place / 7 + shift]


VECTORS = torch.tensor([vector(key) for key in KEYS], dtype=torch.float64)


def empty_rows() -> ImageRows:
    return ImageRows(KEYS, 3, NAMES)


def add(rows: ImageRows, keys: Sequence[str], shifts: dict[str, list[float]] | None = None) -> None:
    """Measure some images; shifts are added to their vectors."""
    zero = [0.0, 0.0, 0.0]
    vectors = [[v + s for v, s in zip(vector(key), (shifts or {}).get(key, zero), strict=True)] for key in keys]
    rows.update(keys, torch.tensor(vectors, dtype=torch.float64))


def gathered(shares: Sequence[str], folder: Path, shifts: dict[str, list[float]] | None = None) -> list[Any]:
    """What gather gives, or says, in as many gloo processes as there are shares; an empty share calls no update.

    The shifts are the last process's.
    """
    answers = torch.multiprocessing.get_context("fork").SimpleQueue()
    arguments = (shares, str(folder / "store"), answers, shifts)
    torch.multiprocessing.start_processes(_gather, arguments, nprocs=len(shares), start_method="fork")
    found = dict(answers.get() for _ in shares)
    return [found[rank] for rank in range(len(shares))]


def _gather(rank: int, shares: Sequence[str], store: str, answers: Any, shifts: dict[str, list[float]]) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=len(shares))
    rows = empty_rows()
    if shares[rank]:
        add(rows, shares[rank].split(), shifts if rank == len(shares) - 1 else None)
    try:
        answers.put((rank, rows.gather().tolist()))
    except MegaSRError as error:
        answers.put((rank, str(error)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "shares",
    [
        ["a b/1 c d e"],
        ["e d c", "b/1 a"],
        ["", "b/1 a c d e", ""],
        ["b/1 c e", "a d b/1"],  # filled up with the first image
        ["b/1 a c d e", "b/1 a c d e", "b/1 a c d e"],
    ],
    ids=["one process", "uneven", "two without images", "filled up", "each has all"],
)
def test_every_process_has_every_image_once_in_the_order_of_the_set(shares: list[str], tmp_path: Path) -> None:
    assert gathered(shares, tmp_path) == [VECTORS.tolist()] * len(shares), "to the last bit"


@pytest.mark.parametrize(
    ("second", "shifts", "says"),
    [
        ("a d", {}, "2 of 5 images were not measured: c, e"),
        (
            "a c d e b/1",
            {"b/1": [4e-15, 0, 0]},
            "'b/1' was measured twice: psnr is 20.0 and 20.000000000000004",
        ),
        ("a c d e b/1", {"b/1": [0, 0, 1e-9]}, "'b/1' was measured twice: its features differ"),
    ],
)
def test_every_process_hears_what_is_wrong(second: str, shifts: Any, says: str, tmp_path: Path) -> None:
    assert gathered(["b/1", second], tmp_path, shifts) == [says, says]


def test_names_are_checked() -> None:
    with pytest.raises(UsageError, match="repeated: a"):
        ImageRows(["a", "b", "a"], 3)
    with pytest.raises(MegaSRError, match="not of the evaluation set: x, y"):
        empty_rows().update(["x", "a", "y"], VECTORS[:3])


def test_one_number_is_a_table_too() -> None:
    rows = ImageRows(["a"], 1)
    rows.update(["a"], torch.ones(1, 1))
    assert rows.gather().shape == (1, 1)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "to", "type"])
def test_a_module_that_is_cast_leaves_the_numbers_alone(cast: str) -> None:
    module = torch.nn.Linear(1, 1)
    module.rows = rows = empty_rows()
    add(rows, KEYS[:2])
    getattr(module, cast)(*[torch.bfloat16] if cast in ("to", "type") else [])
    assert module.weight.dtype != torch.float32, "the cast is real"
    add(rows, KEYS[2:])
    assert torch.equal(rows.gather(), VECTORS)


@pytest.mark.filterwarnings("error")
def test_a_second_evaluation_begins_with_nothing() -> None:
    rows = empty_rows()
    add(rows, KEYS)
    rows.gather()
    rows.reset()
    with pytest.raises(MegaSRError, match="5 of 5"):
        rows.gather()
    add(rows, KEYS[::-1])
    assert torch.equal(rows.gather(), VECTORS)
