"""A folder with an adapter that can be used: weights, config, model card, and the prior by reference or as a copy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.files import file_sha256, write_whole_folder
from megasr.prior import PARTS
from megasr.provenance import provenance
from megasr.system import MegaSR
from megasr.training.checkpoint import build_from_state, trained_state
from megasr.weights.local import find_prior

WEIGHTS, CONFIG, CARD, PRIOR = "adapter.safetensors", "config.json", "README.md", "prior"
FORMAT = 1


def save(system: MegaSR, folder: Path, include_prior: bool) -> None:
    """Write a folder that `load` reads, whole or not at all. Parameters as for MegaSRPipeline.save_pretrained."""
    from safetensors.torch import save_file

    if folder.exists() and not is_exported(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an exported adapter: choose another folder")
    try:
        with write_whole_folder(folder) as temporary:
            state = trained_state(system, system.state_dict())
            save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, temporary / WEIGHTS)
            config = _config(system) | {"sha256": file_sha256(temporary / WEIGHTS)}
            (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            (temporary / CARD).write_text(_card(system, sum(value.numel() for value in state.values()), include_prior))
            if include_prior:
                _copy_prior(find_prior(system.settings["prior"]), temporary / PRIOR)
    except OSError as error:
        raise MegaSRError(f"cannot write {folder}: {error.strerror or error}") from error


def load(folder: str | Path, prior: str | None = None) -> MegaSR:
    """The MegaSR of a folder that `save` wrote. Parameters as for MegaSRPipeline.from_pretrained."""
    folder = Path(folder)
    if not is_exported(folder):
        last = folder / "last.ckpt"
        hint = f"a run's checkpoint is {last}" if last.is_file() else "see megasr export --help"
        raise MegaSRError(f"{folder}: not an exported adapter, it lacks {WEIGHTS} or {CONFIG}; {hint}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        if config["format"] != FORMAT:
            raise MegaSRError(
                f"{folder}: its format is {config['format']}, this version reads {FORMAT}; export the run again"
            )
        settings, fingerprint = dict(config["module"]), config["prior_fingerprint"]
        state = _read_weights(folder / WEIGHTS, config.get("sha256"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MegaSRError(f"cannot read the exported adapter {folder}: {type(error).__name__}: {error}") from error
    if prior is None and (folder / PRIOR).is_dir():
        prior = str(folder / PRIOR)
    checkpoint = {"state_dict": state, "hyper_parameters": settings, "prior_fingerprint": fingerprint}
    return build_from_state(MegaSR, checkpoint, folder, prior, {})


def _read_weights(path: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """Name -> tensor of any dtype. Folders of older versions have no sha256.

    Raises:
        OSError: the file has changed, or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if sha256 is not None and file_sha256(path) != sha256:
        raise OSError(f"{path} was changed after it was written")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def is_exported(folder: Path) -> bool:
    """Whether a folder looks like one that `save` wrote."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def _config(system: MegaSR) -> dict[str, Any]:
    settings = {**system.settings, "init": None}  # where training started and maps are cached: places on the machine
    if settings["extractors"] is not None:
        settings["extractors"] = {**settings["extractors"], "cache": None}
    return {
        "format": FORMAT,
        "prior_fingerprint": system.prior_fingerprint,
        "module": settings,
        "made_with": provenance("none")["versions"],
    }


def _copy_prior(source: Path, target: Path) -> None:
    target.mkdir()
    shutil.copy(source / "model_index.json", target)
    for name in (*PARTS, "tokenizer"):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)


def _card(system: MegaSR, trained: int, include_prior: bool) -> str:
    sampler, adapter = system.sampler, system.adapter
    guidance = ", ".join(guidance.name for guidance in system.network.guidance) or "none"
    words = ", ".join(name for name, on in (("tags", adapter.text), ("image tokens", adapter.image)) if on) or "none"
    where = "a copy is in `prior/`" if include_prior else "not included"
    return f"""---
library_name: megasr
tags: [image-super-resolution, diffusion]
---
# An adapter for image super-resolution

Made by megasr: {trained:,} trained parameters on a frozen text-to-image prior. Architecture: MegaSR (arXiv 2503.08096),
rebuilt from its figure; not the paper's weights.

| | |
|---|---|
| prior | `{system.settings["prior"]}`, fingerprint {system.prior_fingerprint}, {where} |
| scale factor | {system.scale_factor} |
| guidance | {guidance} |
| semantics | {words} |
| sampler | {sampler.solver or "ddim"}, {sampler.num_steps} steps, guidance_scale {sampler.guidance_scale:g} |

```python
from megasr import MegaSRPipeline

pipeline = MegaSRPipeline.from_pretrained("path/to/this/folder")
sr = pipeline(image).images[0]
```

The prior's licence holds for its outputs. What the adapter was trained on, and how well it restores, its maker may add.
"""
