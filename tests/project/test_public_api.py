"""The public Python API: its names, the examples in their docstrings, and that restoring needs no lightning."""

from __future__ import annotations

import doctest
import importlib
import multiprocessing

import pytest

import ablations
import megasr
from tests.helpers.sources import ROOT, imports, sources

DOCUMENTED = ("megasr", "megasr.system", "megasr.inference.pipeline", "megasr.networks.config", "ablations")


def test_every_public_name_is_there_and_no_other() -> None:
    assert megasr.MegaSRPipeline.__name__ == "MegaSRPipeline"
    for package in (megasr, ablations):
        assert all(getattr(package, name) for name in package.__all__)
        assert not hasattr(package, "MegaSRs")
    assert (ROOT / "megasr" / "py.typed").is_file()


def _run_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_examples_run(name: str) -> None:
    """In a process of their own: they register things."""
    process = multiprocessing.get_context("fork").Process(target=_run_examples, args=(name,))
    process.start()
    process.join(200)
    assert process.exitcode == 0


def test_the_pipeline_imports_no_lightning() -> None:
    seen: set[str] = set()

    def visit(name: str) -> None:
        seen.add(name)
        for target, _ in imports(name, at_import_time=True):
            assert target.split(".")[0] not in ("lightning", "pytorch_lightning"), f"{name} imports {target}"
            if target in sources() and target not in seen:
                visit(target)

    visit("megasr.inference.pipeline")
    assert {"megasr.system", "megasr.training.checkpoint"} <= seen
