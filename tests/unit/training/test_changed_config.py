"""Which changes of a configuration make another training of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from megasr.errors import UsageError
from megasr.training.checkpoint import CONFIG, GLOBAL_BATCH, changes, refuse_changed_batch, refuse_changes

BEFORE: dict[str, Any] = {
    "ckpt_path": None,
    "model": {
        "seed": 0,
        "vision": None,
        "adapter": {"guidance": ("canny",), "gradient_checkpointing": False},
        "optimizer": {"learning_rate": 1e-3, "decay_share": 0.0},
        "sampler": {"num_steps": 20},
    },
    "data": {
        "class_path": "data_pipelines.PhotoDataModule",
        "init_args": {"batch_size": 2, "num_workers": 0, "seed": 1},
    },
    "trainer": {
        "max_steps": 10,
        "devices": 1,
        "gradient_clip_val": 1.0,
        "callbacks": [{"class_path": "megasr.training.callbacks.EMA", "init_args": {"decay": 0.99}}],
    },
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(BEFORE)
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("model.optimizer.learning_rate", 2e-3, "model.optimizer.learning_rate: 0.001 -> 0.002"),
        ("model.adapter.guidance", ["canny", "hed"], "model.adapter.guidance: ['canny'] -> ['canny', 'hed']"),
        ("model.seed", 1, "model.seed: 0 -> 1"),
        ("model.vision", {"model": "tiny"}, "model.vision.model: not set -> tiny"),
        ("data.init_args.seed", 2, "data.seed: 1 -> 2"),
        ("data.class_path", "SceneDataModule", "data.class_path: data_pipelines.PhotoDataModule -> SceneDataModule"),
        ("trainer.gradient_clip_val", None, "trainer.gradient_clip_val: 1.0 -> not set"),
        (
            "trainer.callbacks",
            [{"class_path": "megasr.training.callbacks.EMA", "init_args": {"decay": 0.9}}],
            "trainer.callbacks.EMA.decay: 0.99 -> 0.9",
        ),
    ],
)
def test_what_changes_a_step_is_named_with_both_values(key: str, value: Any, line: str) -> None:
    assert changes(BEFORE, changed(key, value)) == [line]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.adapter.guidance", ["canny"]),
        ("model.adapter.gradient_checkpointing", True),
        ("model.sampler", {"num_steps": 4}),
        ("trainer.max_steps", 20),
        ("trainer.devices", 2),
        ("trainer.strategy", {"class_path": "megasr.training.sharding.ShardedStrategy", "init_args": {}}),
        (
            "trainer.callbacks",
            [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": 3}},
                *BEFORE["trainer"]["callbacks"],
            ],
        ),
        ("data.init_args.num_workers", 2),
        ("ckpt_path", "last"),
    ],
)
def test_what_leaves_the_steps_as_they_are_may_differ(key: str, value: Any) -> None:
    assert changes(BEFORE, changed(key, value)) == []


def test_the_length_matters_where_the_learning_rate_falls_towards_the_end() -> None:
    before, now = changed("model.optimizer.decay_share", 0.5), changed("model.optimizer.decay_share", 0.5)
    now["trainer"]["max_steps"] = 20
    assert changes(before, now) == ["trainer.max_steps: 10 -> 20"]


def test_a_checkpoint_is_refused_once_for_all_changes_unless_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({CONFIG: BEFORE, GLOBAL_BATCH: 4}, path)
    now = changed("model.seed", 1)
    now["trainer"]["gradient_clip_val"] = 0.5
    with pytest.raises(
        UsageError, match=r"another model.seed, trainer.gradient_clip_val: .*--allow_changed_config true"
    ):
        refuse_changes(path, now)
    refuse_changes(path, now | {"allow_changed_config": True})
    with pytest.raises(UsageError, match=r"another global batch"):
        refuse_changed_batch(path, 2, BEFORE)
    refuse_changed_batch(path, 4, BEFORE)
    refuse_changed_batch(path, None, BEFORE)
    refuse_changed_batch(path, 2, BEFORE | {"allow_changed_config": True})


def test_a_checkpoint_from_before_a_field_was_trained_with_its_default() -> None:
    now = copy.deepcopy(BEFORE)
    now["model"]["adapter"]["msfm"] = "megasr"
    assert changes(BEFORE, now) == []
    now["model"]["adapter"]["msfm"] = "mine"
    assert changes(BEFORE, now) == ["model.adapter.msfm: megasr -> mine"]


def test_of_a_checkpoint_without_a_configuration_the_modules_arguments_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"hyper_parameters": BEFORE["model"]}, path)
    refuse_changes(path, changed("data.init_args.seed", 2))
    with pytest.raises(UsageError, match=r"another model.seed: "):
        refuse_changes(path, changed("model.seed", 1))
