"""Names that people type, and the errors they can cause; the command line makes exit codes of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal


def split_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names of a list, or of one string with commas or spaces between them ("hed,depth")."""
    return tuple(given.replace(",", " ").split()) if isinstance(given, str) else tuple(given)


def metric_key(stage: Literal["train", "val", "test"], name: str) -> str:
    """How a metric is logged, in every command and study: `test/psnr_y`."""
    return f"{stage}/{name}"


class MegaSRError(RuntimeError):
    """Something outside the program is missing or broken (a weight, a file, a checkpoint). The CLI exits with 1."""


class UsageError(ValueError):
    """A value that was typed or configured cannot be used. The CLI exits with 2."""


def printable(text: str) -> str:
    """Text that does nothing to a terminal: names of files may hold its commands, and bytes that are no characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# What other projects call some settings, and what they are called here.
_ALIASES = {
    "lr": "learning_rate", "wd": "weight_decay", "warmup": "warmup_steps", "bs": "batch_size", "workers": "num_workers",
    "num_worker": "num_workers", "epochs": "max_epochs", "num_epochs": "max_epochs", "steps": "max_steps",
    "iterations": "max_steps", "total_iter": "max_steps", "gpus": "devices", "num_gpus": "devices", "amp": "precision",
    "output": "default_root_dir", "output_dir": "default_root_dir", "resume": "ckpt_path", "checkpoint": "ckpt_path",
    "scale": "scale_factor", "upscale": "scale_factor", "crop_size": "crop_size_px", "gt_size": "crop_size_px",
    "patch_size": "crop_size_px", "grad_accum": "accumulate_grad_batches", "cfg_scale": "guidance_scale",
    "gradient_accumulation_steps": "accumulate_grad_batches", "grad_clip": "gradient_clip_val",
    "num_inference_steps": "num_steps", "dataset": "data", "train_dir": "train_root", "val_dir": "eval_root",
    "val_root": "eval_root", "pretrained_model_name_or_path": "prior", "betas": "beta1",
}  # fmt: skip


def unknown_name(kind: str, got: str, known: Iterable[str]) -> UsageError:
    """The one way to say that a name is not registered: it shows the nearest names, or all when none is near.

    A key of a configuration that has another name in other projects (`lr`) is shown with its name here, first.
    """
    known = sorted(known)
    section, _, name = got.rpartition(".")
    called = _ALIASES.get(name.lower().replace("-", "_"))
    meant = [key for key in known if key.rpartition(".")[2] == called]
    meant.sort(key=lambda key: not key.startswith(section))
    near = list(dict.fromkeys([*meant, *difflib.get_close_matches(got, known, n=3, cutoff=0.5)]))[:3]
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"unknown {kind} {got!r}; {hint}")
