"""Real processes of one training: forked from this one, which has imported Lightning, and connected by gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 200) -> list[Any]:
    """What `function(*arguments)` returns in every process, in the order of their ranks.

    Raises:
        AssertionError: with what the first process that failed has to say.
    """
    context = multiprocessing.get_context("fork")
    (port,), pipes, processes = free_ports(1), [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(rank, world_size, port, sender, function, arguments))
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        results = [_receive(pipe, rank, timeout_s) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    if errors := [error for _, error in results if error is not None]:
        raise AssertionError("\n".join(errors))
    return [value for value, _ in results]


def _receive(pipe: Any, rank: int, timeout_s: float) -> tuple[Any, str | None]:
    if not pipe.poll(timeout_s):
        return None, f"rank {rank} said nothing for {timeout_s} s"
    try:
        return pipe.recv()
    except EOFError:
        return None, f"rank {rank} ended without a word"


def _run(rank: int, world_size: int, port: int, sender: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= rank_environment(rank, world_size, port)
    try:
        sender.send((function(*arguments), None))
    except BaseException:
        sender.send((None, f"rank {rank}:\n{traceback.format_exc()}"))
    finally:
        sender.close()


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun would set for a process: Lightning then starts none of its own."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    numbers = dict(zip(names, map(str, (rank, rank, 0, world_size, world_size)), strict=True))
    return numbers | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.socket()) for _ in range(count)]
        for server in servers:
            server.bind(("127.0.0.1", 0))
        return [int(server.getsockname()[1]) for server in servers]
