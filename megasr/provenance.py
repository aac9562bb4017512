"""Where numbers come from: fingerprints of weights and configs, commit, versions."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

_SAMPLES = 64  # values read per tensor: enough to tell any two trained networks apart, fast for a billion weights


def weights_digest(module: nn.Module, also: bytes = b"") -> str:
    """64 hexadecimal digits over samples of every tensor of a module, and over `also`.

    Values are compared as float16: a network and its fp16 copy have one digest. Take it before a cast to another dtype.
    """
    return digest_samples(weight_samples(module), also)


def weight_samples(module: nn.Module) -> dict[str, bytes]:
    """What weights_digest reads of a module: name of a tensor -> its shape and some of its values as float16."""
    samples = {}
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)][: _SAMPLES + 1]
        samples[name] = f"{tuple(tensor.shape)}".encode() + sample.half().cpu().numpy().tobytes()
    return samples


def digest_samples(samples: Mapping[str, bytes], also: bytes = b"") -> str:
    """The digest of weight_samples, in whatever order they come."""
    digest = hashlib.sha256(also)
    for name in sorted(samples):
        digest.update(name.encode() + samples[name])
    return digest.hexdigest()


_PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "pyiqa", "numpy")


def provenance(device: str, **more: Any) -> dict[str, Any]:
    """Commit, versions, machine, device and UTC time, written beside numbers, and `more`."""
    return {
        "commit": git_commit(),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }


def versions() -> dict[str, str]:
    """Versions of the packages that make the numbers; packages that are not installed are left out."""
    installed = {name: importlib.util.find_spec(name) for name in _PACKAGES}
    return {name: version(name) for name, spec in installed.items() if spec}


@cache
def git_commit() -> str | None:
    """Commit of the code's own checkout, "+changes" appended when it is not clean; None when it is not a checkout."""
    here = Path(__file__).parent
    # An environment may lie in the repository of another project, which knows nothing of this file.
    own = _git(["ls-files", "--error-unmatch", Path(__file__).name], here)
    head = own and _git(["rev-parse", "--short=12", "HEAD"], here)
    return head and head + ("+changes" if _git(["status", "--porcelain", "--untracked-files=no"], here) else "")


def _git(arguments: Sequence[str], folder: Path) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
