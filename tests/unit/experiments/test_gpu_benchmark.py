"""The GPU benchmark: its parts run on the processor, and a part that fails does not take the others with it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import gpu
from experiments.benchmarks.memory_plan import TINY


@pytest.fixture
def bench() -> gpu.Bench:
    return gpu.Bench("cpu", replace(TINY, crop_size_px=64), batches=(1,), calls=1, deadline=math.inf)


def test_a_step_is_compared_with_the_roof_and_with_the_planned_memory(bench: gpu.Bench) -> None:
    bench.roof()
    found = bench.train()
    row = found["batch_1"]
    achieved = row["images_per_s"] * found["gflop_per_image"] * 1e9
    assert row["mfu"] == pytest.approx(achieved / bench.roof_flops)
    assert bench.step_s[1] == pytest.approx(1 / row["images_per_s"])
    assert found["batch_1_checkpointing"]["predicted_gib"] < row["predicted_gib"]


def test_a_batch_that_does_not_fit_is_a_row(bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "_train", full)
    monkeypatch.setattr(gpu, "plan_gib", lambda setup: 141.0 * setup.batch_size)
    assert bench.train()["batch_1"] == {"error": "out of memory", "predicted_gib": 141.0}


def test_after_its_time_nothing_is_begun(bench: gpu.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.deadline = 0.0
    monkeypatch.setattr(gpu, "plan_gib", lambda setup: 1.0)
    assert bench.train()["batch_1"]["error"] == "not begun: the time was up"
    with pytest.raises(TimeoutError, match="not begun"):
        bench.inference()


def test_the_degradation_is_the_processors(bench: gpu.Bench) -> None:
    assert bench.degradation()["difference_levels"] == {"mean": 0, "largest": 0}


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train", "inference", "extraction", "sharded"):
        monkeypatch.setattr(gpu.Bench, name, _named(name))
    record = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu", "--dry-run", "--output", str(record)])
    gpu.main()
    results = json.loads(record.read_text())["results"]
    assert results["roof"]["matmul_bf16_tflops"] > 0
    assert results["train"]["error"] == "RuntimeError: train broke"
    assert results["degradation"]["images_per_s"]["batch_2"] > 0


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--dry-run" in capsys.readouterr().err


def _named(name: str) -> Callable[[gpu.Bench], dict[str, Any]]:
    def part(self: gpu.Bench) -> dict[str, Any]:
        raise RuntimeError(f"{name} broke")

    part.__name__ = name
    return part
