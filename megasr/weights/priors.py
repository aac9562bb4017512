"""Where a prior lies on this machine, and what its configuration says of it, without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megasr.weights.local import find_local, missing_weight

TINY_FOLDER = Path(__file__).parents[1] / "assets" / "tiny_prior"


def find_prior(source: str) -> Path:
    """The folder of a prior: `tiny`, a local diffusers folder, `sd21-base`, or a hub id in the local cache.

    Raises:
        MegaSRError: it is not on this machine; says where it can be had and with which command.
    """
    if source == "tiny":
        return TINY_FOLDER
    if Path(source).is_dir():
        return Path(source)
    folder = find_local(source)
    if folder is None:
        raise missing_weight(source)
    return folder


def downsampling(vae: Mapping[str, Any]) -> int:
    """f of an autoencoder's configuration: image pixels per latent pixel and axis."""
    return 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)


def size_multiple(vae: Mapping[str, Any], unet: Mapping[str, Any]) -> int:
    """hq height and width must be multiples of this many pixels: VAE down-sampling times the U-Net's."""
    return downsampling(vae) * 2 ** (len(unet["block_out_channels"]) - 1)


def read_size_multiple(folder: Path) -> int | None:
    """size_multiple of the prior in a folder; None when its configuration cannot be read."""
    try:
        vae, unet = (json.loads((folder / part / "config.json").read_text()) for part in ("vae", "unet"))
        return size_multiple(vae, unet)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whoever loads it says what is wrong with it
