"""Worker processes: results in order, errors as they were raised, a killed worker named."""

from __future__ import annotations

import os
import signal

import pytest

from data_pipelines.shards.parallel import map_ordered
from megasr.errors import MegaSRError, UsageError


def square_or_fail(number: int) -> int:
    if number == 13:
        raise UsageError("unlucky")
    if number == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_errors(workers: int) -> None:
    assert list(map_ordered(square_or_fail, range(10), workers)) == [number**2 for number in range(10)]
    with pytest.raises(UsageError, match=r"^unlucky$"):
        list(map_ordered(square_or_fail, range(10, 16), workers))


def test_a_killed_worker_is_an_error() -> None:
    with pytest.raises(MegaSRError, match="a worker process was killed, .* fewer --workers"):
        list(map_ordered(square_or_fail, range(14, 20), 2))
