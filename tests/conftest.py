"""Every test runs without network, offline for W&B and the hubs, on one torch thread, and writes in pytest's folder.

Each test and each fixture begins with the same random numbers, whichever ran before it in its process.
"""

from __future__ import annotations

import gc
import os
import random
import socket
import tempfile
from pathlib import Path

import pytest

# Set before torch is imported: two threads per process are slower than one when the tests run in parallel.
os.environ.update(
    WANDB_MODE="offline", WANDB_SILENT="true", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OMP_NUM_THREADS="1"
)
# What the developer has downloaded must not decide what a test sees.
_NO_WEIGHTS = Path(tempfile.gettempdir()) / "megasr-tests-have-no-weights"
os.environ.update(MEGASR_WEIGHTS=str(_NO_WEIGHTS), HF_HUB_CACHE=str(_NO_WEIGHTS))
_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", ""}
_connect = socket.socket.connect
_lookup = socket.getaddrinfo


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look through it again and again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries complain at the end of the process of what was not collected."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A `gpu` test runs wherever there is a GPU, and says so where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def _seed() -> None:
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """What a fixture draws does not depend on the tests before it."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """What a test draws does not depend on the tests before it, nor on which of its fixtures were there already."""
    _seed()


class NetworkBlockedError(RuntimeError):
    """A test without the `network` marker tried to leave this machine."""


def _is_local(address: object) -> bool:
    return not isinstance(address, tuple) or address[0] in _LOCAL_HOSTS


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("network"):
        return

    def connect(self: socket.socket, address: object) -> None:
        if not _is_local(address):
            raise NetworkBlockedError(f"connection to {address}")
        _connect(self, address)

    def lookup(host: object, *args: object, **kwargs: object) -> object:
        if host not in _LOCAL_HOSTS and host is not None and host != socket.gethostname():
            raise NetworkBlockedError(f"look-up of {host}")
        return _lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "records"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    monkeypatch.delenv("MEGASR_DEBUG", raising=False)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return Path(__file__).parents[1]
