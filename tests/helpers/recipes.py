"""The recipes of `megasr fit`, their lab notes, and a twin of each that is small enough for a CPU test."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml

from megasr import system as parts
from megasr.commands import lightning_cli
from megasr.images import write_png
from megasr.prior import Prior, load_prior
from megasr.training.module import MegaSRModule
from tests.helpers.losses import load_random
from tests.helpers.sd3 import sd3_folder
from tests.helpers.sdxl import sdxl_folder
from tests.helpers.sources import ROOT
from tests.helpers.towers import random_tower

Config = dict[str, Any]
TOKEN_WIDTH = 24  # of random_tower's tokens
# The ControlNet's outputs are zero at first: its own zero layers see a gradient in step 2, what feeds them in 3.
STEPS = 3
VOCABULARY = ["<|startoftext|>", "<|endoftext|>"]
# Hyper-parameters are kept; only sizes, devices and what is written are changed. Most CPUs emulate bf16 slowly.
QUIET = {
    "accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", "max_steps": STEPS,
    "logger": False, "limit_val_batches": 0,
    "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def is_fit_recipe(path: Path) -> bool:
    """Whether `megasr fit` reads it: the recipes of `megasr pretrain` say which module they train."""
    config = yaml.safe_load(path.read_text())
    return "model" in config and "class_path" not in config["model"]


FIT_RECIPES = [path for path in sorted((ROOT / "experiments").rglob("*.yaml")) if is_fit_recipe(path)]
cached_prior: Callable[..., Prior] = functools.cache(load_prior)  # frozen, and no module changes it


def read_recipe(path: Path) -> Config:
    """A recipe as `megasr fit` reads it: what a study adds is left out."""
    return {name: section for name, section in yaml.safe_load(path.read_text()).items() if name != "study"}


def read_note(path: Path) -> dict[str, str]:
    """Field -> text of the first comment block: `# Field: text`, with lines of further text indented."""
    title, *lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    note, field = {"title": title.removeprefix("# ")}, "title"
    for line in lines:
        text = line.removeprefix("# ").strip("#")
        head, colon, rest = text.partition(":")
        if colon and not head.startswith(" "):
            field, text = head.partition(" (")[0], rest
        note[field] = f"{note.get(field, '')} {text.strip()}".strip()
    return note


class Materials:
    """What the twins of full-size recipes stand on: small priors of their layouts, a vision tower, photographs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.priors = {
            "sd21-base": write_sd_prior(folder / "prior"),
            "sdxl-base": Path(sdxl_folder()),
            "sd35-medium": Path(sd3_folder(t5=False)),
        }
        self.tower = random_tower(folder)
        for part, count in (("train", 2), ("eval", 1)):
            for number in range(count):
                write_picture(folder / part / f"{number}.png", number + 10 * (part == "eval"))


def write_picture(path: Path, number: int) -> None:
    """144x144 px of sharp bars, with tags beside it."""
    y, x = np.mgrid[:144, :144]
    image = np.stack([((x + (c + number) * y) // (9 + c)) % 2 * (200 - 40 * c) + 30 for c in range(3)], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(image.astype(np.uint8), path)
    path.with_suffix(".txt").write_text("bars, stripes")


def write_sd_prior(folder: Path) -> Path:
    """A diffusers folder with the layout of SD 2.1-base (f = 8, four levels, transformers' text tower), but narrow."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=6)
    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionPipeline(
            vae=AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, **blocks),
            unet=UNet2DConditionModel(
                block_out_channels=(16, 16, 32, 32), cross_attention_dim=16, attention_head_dim=(1, 1, 2, 2),
                norm_num_groups=8, use_linear_projection=True, layers_per_block=1,
            ),
            text_encoder=CLIPTextModel(text), tokenizer=tokenizer, scheduler=DDPMScheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).save_pretrained(folder)  # fmt: skip
    return folder


def twin(config: Config, materials: Materials) -> Config:
    """The same recipe, small: the tiny recipes with few and small scenes, the full-size ones with small parts."""
    config = copy.deepcopy(config)
    model, data = config["model"], config["data"]["init_args"]
    config["trainer"] |= QUIET | {"default_root_dir": str(materials.folder / "run")}
    objective = model.get("objective", {})
    model["sampler"]["num_steps"] = 2 if objective.get("kind") != "one_step" else 1
    if starts := objective.get("term_starts"):
        objective["term_starts"] = dict.fromkeys(starts, 1)
    objective |= {"type_dropout": None} if "type_dropout" in objective else {}  # else a few steps may show no map
    model["adapter"]["saft_width"] = 8
    model["adapter"] |= {name: 2 for name in model["adapter"] if name in ("prior_lora", "encoder_lora")}
    data |= {"batch_size": 2, "train_samples": 64, "eval_samples": 1}
    for name in ("init", "init_parts"):  # a trained adapter, which only a run leaves
        model.pop(name, None)
    if model["prior"].startswith(("runs/", "experiments/")):  # the prior of 256 px: what ships stands in
        model["prior"] = "tiny"
        model |= {"vision": {"model": "tiny"}} if "vision" in model else {}
        if "extractors" in model:
            model["extractors"]["sources"] = dict.fromkeys(model["extractors"]["sources"], "tiny")
    if model["prior"] == "tiny":
        data |= {"crop_size_px": 64, "eval_crop_size_px": 64} | ({"pool": 2} if "pool" in data else {})
        data |= {"photos": str(materials.folder / "train")} if "photos" in data else {}
        return config
    model["prior"] = str(materials.priors[model["prior"]])
    if "vision" in model:
        model["vision"] = {"model": materials.tower.model, "weights": str(materials.tower.weights)}
    if "extractors" in model:
        model["extractors"]["sources"] = dict.fromkeys(model["extractors"]["sources"], "tiny")
        model["extractors"]["dtype"] = "float32"
    model["adapter"] |= {
        name: TOKEN_WIDTH for name in model["adapter"] if name in ("image_width", "representation_width")
    }
    config["data"]["class_path"] = "FolderDataModule"
    data |= {"train_root": str(materials.folder / "train"), "eval_root": str(materials.folder / "eval")}
    data |= {"crop_size_px": 128, "batch_size": 1, "num_workers": 0}
    for name in ("train_url", "eval_url"):
        del data[name]
    return config


class Witness(lightning.Callback):
    """Remembers which trained tensors were not part of a backward pass, and which ever had a gradient."""

    def __init__(self) -> None:
        self.unused: set[str] = set()
        self.reached: set[str] = set()

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: MegaSRModule, optimizer: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                self.unused.add(name)
            elif parameter.requires_grad and parameter.grad.isfinite().all() and parameter.grad.any():
                self.reached.add(name)


def fit(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, watch: lightning.Callback
) -> lightning_cli.MegaSRCLI:
    """`megasr fit --config` on a file with this content; returns the command with what it has built."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    commands = []

    class Watched(lightning_cli.MegaSRCLI):
        def before_fit(self) -> None:
            commands.append(self)
            self.trainer.callbacks.append(watch)

    monkeypatch.setattr(lightning_cli, "MegaSRCLI", Watched)
    monkeypatch.setattr(parts, "load_prior", cached_prior)
    monkeypatch.setattr(parts.FrozenParts, "perceptual", load_random)
    lightning_cli.run_lightning(["fit", "--config", str(path)])
    return commands[0]
