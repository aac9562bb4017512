"""The plan's units and bounds, and that the document shows the kept record."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import lightning
import pytest

from data_pipelines.datamodules import PhotoDataModule
from experiments.benchmarks.memory_plan import TINY
from experiments.benchmarks.record import read_record
from experiments.benchmarks.scaling_plan import (
    Assumed,
    count,
    one_ring_s,
    opened_per_image,
    plan,
    ring_bytes,
    table,
    two_levels_s,
)
from megasr.errors import UsageError
from megasr.training.callbacks import EMA
from megasr.training.memory_setup import module_arguments
from megasr.training.module import MegaSRModule

ONE_GB = 1e9  # bytes


def test_a_ring_sends_twice_the_gradients_at_most() -> None:
    assert ring_bytes(1, ONE_GB) == 0
    assert ring_bytes(2, ONE_GB) == ONE_GB
    assert ring_bytes(256, ONE_GB) == pytest.approx(1.9921875e9)


def test_bits_of_the_network_are_eighths_of_bytes() -> None:
    assert one_ring_s(Assumed(gpus=2, gpus_per_node=2, network_gbit_per_s=8), ONE_GB) == pytest.approx(1)
    assert two_levels_s(Assumed(gpus=2, gpus_per_node=2, nvlink_gb_per_s=1), ONE_GB) == pytest.approx(1), "NVLink alone"


def test_two_levels_are_one_ring_where_a_node_has_one_gpu() -> None:
    assumed = Assumed(gpus=16, gpus_per_node=1)
    assert two_levels_s(assumed, ONE_GB) == one_ring_s(assumed, ONE_GB)


def test_two_levels_send_an_eighth_between_nodes() -> None:
    assumed = Assumed(gpus=256, gpus_per_node=8, nvlink_gb_per_s=math.inf, network_gbit_per_s=8)
    assert two_levels_s(assumed, ONE_GB) == pytest.approx(2 * 31 / 32 / 8)


def test_readers_open_an_index_for_all_of_its_images_or_for_one() -> None:
    assert opened_per_image(16, 1000, readers=1) == pytest.approx(1 / 1000)
    assert opened_per_image(16, 1000, readers=16_000) == pytest.approx(1)
    assert 0.01 < opened_per_image(16, 1000, readers=100) < 0.11


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"gpus": 12}, "gpus 12 is not a multiple of gpus_per_node 8"),
        ({"disk_gb_per_s": 0.0}, "disk_gb_per_s must be pos"),
    ],
)
def test_what_no_cluster_is_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Assumed(**values)


def planned(record: dict[str, Any], assumed: Assumed) -> list[dict[str, Any]]:
    results = record["results"]
    return plan(
        assumed, results["measured"], results["counted"], read_record("shard_order"), results["extracted_gflop"]
    )


@pytest.mark.parametrize("name", [field.name for field in fields(Assumed)])
def test_every_assumption_changes_the_plan(name: str) -> None:
    record = read_record("scaling_plan")
    assumed = Assumed(**record["settings"])
    changed = replace(assumed, **{name: getattr(assumed, name) * 2})
    assert planned(record, changed) != planned(record, assumed)


def test_the_plan_of_round_numbers() -> None:
    """100 GPUs' images of 1 TFLOP at 10 TFLOP/s in batches of 1: ten images a second and GPU, less the all-reduce."""
    record = read_record("scaling_plan")
    assumed = Assumed(
        gpus=8, gpus_per_node=8, batch_size=1, sustained_tflops=10, nvlink_gb_per_s=1e6, disk_gb_per_s=2,
        steps_between_checkpoints=10,
    )  # fmt: skip
    parts = {
        "trained_bytes": 4e6, "gradient_bytes": 4e6, "checkpoint_bytes": 2e9, "gflop_per_image": 600, "peak_gib": 1.0,
    }  # fmt: skip
    rows = plan(assumed, record["results"]["measured"], {"one": parts}, read_record("shard_order"), extracted=400)
    values = {row["what"]: (row["values"][-1], row["unit"]) for row in rows}
    assert values["trained parameters"] == (1, "1e6")
    assert values["operations of an image, extractors included"] == (1, "TFLOP")
    assert values["step without communication"] == (0.1, "s")
    assert values["images of all GPUs"] == (80, "1/s")
    assert values["writing it in one process"] == (1, "s")
    assert values["share of the time, if training waits"] == (50, "%"), "ten steps of 0.1 s, then one second"
    images, kilobytes = values["images"][0], values["an image and its tags in a shard, JPEG of quality 95"][0]
    assert values["an epoch"] == (pytest.approx(images / 80 / 3600, rel=1e-3), "h")
    assert values["all shards, JPEG"] == (pytest.approx(images * kilobytes * 1e-9, rel=1e-3), "TB")
    assert values["reading of a node, JPEG"] == (pytest.approx(80 * kilobytes / 1e3, rel=1e-3), "MB/s")


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_has_the_bytes_that_are_counted(tmp_path: Path) -> None:
    counted = count(replace(TINY, crop_size_px=64), Assumed(batch_size=1))
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, callbacks=[EMA(0.9)],
    )  # fmt: skip
    data = PhotoDataModule(crop_size_px=64, batch_size=1, train_samples=1, eval_samples=1)
    trainer.fit(MegaSRModule(**module_arguments(TINY.model)), datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").stat().st_size == pytest.approx(counted["checkpoint_bytes"], rel=0.03)


def test_the_document_shows_the_kept_record(root: Path) -> None:
    record = read_record("scaling_plan")
    assert record["results"]["rows"] == planned(record, Assumed(**record["settings"]))
    assert record["settings"].keys() == asdict(Assumed()).keys()
    shown = "experiments/benchmarks/results/scaling_plan.md"
    command = f"run python -m experiments.benchmarks.scaling_plan --table RECORD > {shown}"
    assert (root / shown).read_text() == table(record) + "\n", command
    assert f'--8<-- "{shown}"' in (root / "docs/scaling.md").read_text()
