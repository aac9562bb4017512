"""What several processes measured becomes what one would have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megasr.errors import MegaSRError
from megasr.evaluation.evaluator import gather_vectors

KEYS = ("b/1", "a", "c", "d", "e")
VECTORS = {key: torch.tensor([place / 3, 1e-300 * (place + 1)]).double() for place, key in enumerate(KEYS)}


def gathered(shares: Sequence[str], folder: Path) -> list[Any]:
    """What every one of as many gloo processes as there are shares gets, or is told."""
    answers = torch.multiprocessing.get_context("fork").SimpleQueue()
    arguments = (shares, str(folder / "store"), answers)
    torch.multiprocessing.start_processes(_gather, arguments, nprocs=len(shares), start_method="fork")
    results = dict(answers.get() for _ in shares)
    return [results[rank] for rank in range(len(shares))]


def _gather(rank: int, shares: Sequence[str], store: str, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=len(shares))
    try:
        answers.put((rank, gather_vectors({key: VECTORS[key] for key in shares[rank].split()}, KEYS).tolist()))
    except MegaSRError as error:
        answers.put((rank, str(error)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shares", [["e d c", "b/1 a"], ["", "b/1 a c d e", ""], ["b/1 c e", "a d b/1"]])
def test_every_process_has_every_image_once_in_the_order_of_the_set(shares: list[str], tmp_path: Path) -> None:
    assert gathered(shares, tmp_path) == [torch.stack(list(VECTORS.values())).tolist()] * len(shares)


def test_every_process_says_what_is_missing(tmp_path: Path) -> None:
    assert gathered(["b/1", "a d"], tmp_path) == ["2 of 5 images were not measured: c, e"] * 2


def test_one_process_needs_no_group() -> None:
    assert torch.equal(gather_vectors(VECTORS, KEYS[::-1]), torch.stack(list(VECTORS.values())).flip(0))
