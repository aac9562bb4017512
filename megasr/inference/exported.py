"""A folder with an adapter that can be used: weights, config, model card, and the prior by reference or as a copy."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole_folder
from megasr.prior import PARTS
from megasr.provenance import provenance
from megasr.weights.local import find_prior

if TYPE_CHECKING:
    from megasr.training.module import MegaSRModule

WEIGHTS, CONFIG, CARD, PRIOR = "adapter.safetensors", "config.json", "README.md", "prior"
FORMAT = 1


def save(module: MegaSRModule, folder: Path, include_prior: bool) -> None:
    """Write a folder that `load` reads, whole or not at all. Parameters as for MegaSRPipeline.save_pretrained."""
    from safetensors.torch import save_file

    from megasr.training.checkpoint import trained_state

    if folder.exists() and not is_exported(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an exported adapter: choose another folder")
    try:
        with write_whole_folder(folder) as temporary:
            state = trained_state(module, module.state_dict())
            state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            digests = {name: _digest(value) for name, value in state.items()}
            save_file(state, temporary / WEIGHTS, metadata=digests)
            (temporary / CONFIG).write_text(json.dumps(_config(module), indent=2) + "\n")
            (temporary / CARD).write_text(_card(module, sum(value.numel() for value in state.values()), include_prior))
            if include_prior:
                _copy_prior(find_prior(module.hparams["prior"]), temporary / PRIOR)
    except OSError as error:
        raise MegaSRError(f"cannot write {folder}: {error.strerror or error}") from error


def load(folder: str | Path, prior: str | None = None) -> MegaSRModule:
    """The module of a folder that `save` wrote. Parameters as for MegaSRPipeline.from_pretrained."""
    from megasr.training.checkpoint import build_from_state
    from megasr.training.module import MegaSRModule

    folder = Path(folder)
    if not is_exported(folder):
        last = folder / "last.ckpt"
        hint = f"a run's checkpoint is {last}" if last.is_file() else "see megasr export --help"
        raise MegaSRError(f"{folder}: not an exported adapter, it lacks {WEIGHTS} or {CONFIG}; {hint}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        state = _read_weights(folder / WEIGHTS)
        made_by, settings, fingerprint = config["format"], config["module"], config["prior_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MegaSRError(f"cannot read the exported adapter {folder}: {type(error).__name__}: {error}") from error
    if not isinstance(settings, dict):
        raise MegaSRError(
            f"cannot read the exported adapter {folder}: module in {CONFIG} is a {type(settings).__name__}"
        )
    if made_by != FORMAT:
        raise MegaSRError(f"{folder}: its format is {made_by}, this version reads {FORMAT}; export the run again")
    if prior is None and (folder / PRIOR).is_dir():
        prior = str(folder / PRIOR)
    checkpoint = {"state_dict": state, "hyper_parameters": settings, "prior_fingerprint": fingerprint, "callbacks": {}}
    return build_from_state(MegaSRModule, checkpoint, folder, prior, {})


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of any dtype, each compared with the digest that was written beside it; older files have none.

    Raises:
        OSError: a tensor has changed, or the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            digests, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    for name, value in state.items():
        if digests and digests.get(name) != _digest(value):
            raise OSError(f"{path}: {name} was changed after it was written")
    return state


def _digest(tensor: torch.Tensor) -> str:
    """64 hexadecimal digits of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def is_exported(folder: Path) -> bool:
    """Whether a folder looks like one that `save` wrote."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def _config(module: MegaSRModule) -> dict[str, Any]:
    settings = dict(module.hparams)
    settings["init"] = None  # what the training started from, and where maps are cached: places on the machine
    if settings["extractors"] is not None:
        settings["extractors"] = {**settings["extractors"], "cache": None}
    return {
        "format": FORMAT,
        "prior_fingerprint": module.prior_fingerprint,
        "module": settings,
        "made_with": provenance("none")["versions"],
    }


def _copy_prior(source: Path, target: Path) -> None:
    target.mkdir()
    shutil.copy(source / "model_index.json", target)
    for name in (*PARTS, "tokenizer"):
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)


def _card(module: MegaSRModule, trained: int, include_prior: bool) -> str:
    sampler, prior = module.sampler, module.hparams["prior"]
    guidance = ", ".join(guidance.name for guidance in module.network.guidance) or "none"
    words = ", ".join(n for n, on in (("tags", module.adapter.text), ("image tokens", module.adapter.image)) if on)
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
| prior | `{prior}`, fingerprint {module.prior_fingerprint}, {where} |
| scale factor | {module.scale_factor} |
| guidance | {guidance} |
| semantics | {words or "none"} |
| sampler | {sampler.solver or "ddim"}, {sampler.num_steps} steps, guidance_scale {sampler.guidance_scale:g} |

```python
from megasr.inference.pipeline import MegaSRPipeline

pipeline = MegaSRPipeline.from_pretrained("path/to/this/folder")
sr = pipeline(image).images[0]
```

The prior's licence holds for its outputs. What the adapter was trained on, and how well it restores, its maker may add.
"""
