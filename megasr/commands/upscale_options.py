"""The options of `megasr upscale` and what follows from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.errors import UsageError

if TYPE_CHECKING:
    from megasr.inference.restoring import Settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    add_model_options(parser)
    devices = "as torch names them, a process each; default: cuda where there is one, else cpu"
    parser.add_argument("--device", "--devices", metavar="DEVICE[,DEVICE]", help=devices)
    how = parser.add_argument_group("how images are restored")
    preset = "50, 20 or 8 sampling steps; default: the training's sampler"
    how.add_argument("--preset", choices=("quality", "balanced", "fast"), help=preset)
    how.add_argument("--steps", type=int, help="sampling steps; default: the preset's or the training's")
    how.add_argument("--guidance-scale", type=float, help="classifier-free guidance; default: the training's")
    strength = "of guidance types: 1 is as trained, 0 is off; hed=0.5,depth=0"
    how.add_argument("--strength", default="", metavar="TYPE=S[,...]", help=strength)
    how.add_argument("--prompt", "--tags", default="", help="comma-separated words for what the images show")
    how.add_argument("--negative-prompt", help="what they do not; used with a guidance scale that is not 1")
    how.add_argument("--seed", type=int, help="seed of the sampling noise; default: the training's")
    how.add_argument("--scale-factor", type=float, help="size of sr over that of the image; default: the training's")
    how.add_argument("--color-fix", choices=("adain", "wavelet"), help="give sr the colours of the image")
    add_tile_option(how)
    how.add_argument(
        "--batch-size", type=int, default=1, help="images of one size at once, tiled ones aside (default: 1)"
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "--format", choices=("png", "jpg", "webp", "tif", "bmp"), help="of all outputs; default: each input's own"
    )
    files.add_argument("--overwrite", action="store_true", help="make again what is there, whoever made it")
    files.add_argument("--max-pixels", type=int, help="larger photographs are refused (default: 178956970)")
    files.add_argument("--compare", type=Path, metavar="FILE.html", help="also write a page with a divider for each")
    files.add_argument("--dry-run", action="store_true", help="print what would be done, and what memory it takes")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare which adapter restores, on which prior."""
    checkpoint = "that `megasr fit` wrote, a folder that `megasr export` wrote, or tiny: the shipped one"
    parser.add_argument("--checkpoint", required=True, help=checkpoint)
    parser.add_argument("--prior", help="`tiny`, `sd21-base`, a diffusers folder or a hub id; default: the training's")


def add_tile_option(parser: Any) -> None:
    """Declare --tile; see megasr.inference.arguments.choose_tile."""
    text = "restore sr that is larger in tiles of so many px; 0: never; default: the size that the prior was trained on"
    parser.add_argument("--tile", type=int, metavar="PX", help=text)


def check_tile_option(arguments: argparse.Namespace) -> None:
    """Check --tile.

    Raises:
        UsageError: it is below 0.
    """
    if arguments.tile is not None and arguments.tile < 0:
        raise UsageError(f"--tile is {arguments.tile}, must be greater than 0, or 0 for whole images")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what cannot be used.

    Raises:
        UsageError: a number is out of range.
    """
    check_tile_option(arguments)
    for name in ("steps", "batch_size", "max_pixels", "scale_factor"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, must be greater than 0")
    if arguments.compare is not None and (arguments.compare.is_dir() or not arguments.compare.suffix):
        raise UsageError(f"--compare {arguments.compare}: name an HTML file")
    arguments.strength = parse_strengths(arguments.strength)


def parse_strengths(given: str) -> dict[str, float]:
    """`hed=0.5,depth=0` -> {"hed": 0.5, "depth": 0.0}.

    Raises:
        UsageError: one is not a type and a number.
    """
    strengths = {}
    for text in filter(None, given.split(",")):
        name, _, value = text.strip().partition("=")
        try:
            strengths[name] = float(value)
        except ValueError as error:
            raise UsageError(f"--strength {text}: write TYPE=NUMBER, such as hed=0.5") from error
    return strengths


def make_settings(arguments: argparse.Namespace, folder: Path | None) -> Settings:
    """How images are restored. Sets the devices that are used.

    Raises:
        UsageError: a device cannot be used.
        MegaSRError: the checkpoint cannot be read.
    """
    from megasr import __version__
    from megasr.commands.measuring import usable_device
    from megasr.files import file_sha256, identify_folder
    from megasr.image_decoding import MAX_PIXELS
    from megasr.inference.restoring import Settings

    names = arguments.device.split(",") if arguments.device else [None]
    # Several are tried by their processes: CUDA, once used here, could not be used in a fork.
    arguments.device = [usable_device(names[0])] if len(names) == 1 else names
    options: dict[str, Any] = {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "guidance": arguments.strength or None,
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "seed": arguments.seed,
        "tile": arguments.tile,
        "color_fix": arguments.color_fix,
        "scale_factor": arguments.scale_factor,
        "preset": arguments.preset,
    }
    options = {name: value for name, value in options.items() if value is not None}
    checkpoint = Path(arguments.checkpoint)
    identity = arguments.checkpoint
    if checkpoint.exists():
        identity = identify_folder(checkpoint) if checkpoint.is_dir() else file_sha256(checkpoint)
    described = {"checkpoint": identity, "prior": arguments.prior, "megasr": __version__, **options}
    most = min(arguments.max_pixels or MAX_PIXELS, MAX_PIXELS)
    return Settings(arguments.checkpoint, arguments.prior, options, most, described, folder)
