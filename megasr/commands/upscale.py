"""`megasr upscale`: an image, or a folder of images, to PNG with a trained adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.errors import UsageError

if TYPE_CHECKING:
    from megasr.inference.pipeline import MegaSRPipeline


def add_parser(commands: Any) -> None:
    """Declare `upscale`."""
    parser = commands.add_parser("upscale", help="upscale an image or a folder of images", description=__doc__)
    parser.add_argument("input", type=Path, metavar="INPUT", help="an image or a folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a .png file, or a folder when INPUT is one")
    parser.add_argument("--checkpoint", required=True, help="that `megasr fit` wrote, or tiny: the shipped one")
    parser.add_argument("--prior", help="`tiny`, `sd21-base`, a diffusers folder or a hub id; default: the training's")
    parser.add_argument("--tags", default="", help="comma-separated words for what the images show")
    parser.add_argument("--steps", type=int, help="sampling steps; default: the training's")
    parser.add_argument("--guidance-scale", type=float, help="classifier-free guidance; default: the training's")
    parser.add_argument("--seed", type=int, help="seed of the sampling noise; default: the training's")
    parser.add_argument("--device", help="as torch names it; default: cuda where there is one, else cpu")
    parser.set_defaults(run=run, passes_options_on=False)


def plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(input, output) files. The tree of a folder is kept; every output is a PNG.

    Raises:
        UsageError: nothing to read, a single image to something that is not .png, or two inputs with one output.
    """
    from megasr.images import list_images

    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if source.is_file():
        if target.suffix.lower() != ".png":
            raise UsageError(f"{target}: OUTPUT must end in .png when INPUT is one image")
        return [(source, target)]
    pairs = [(path, (target / path.relative_to(source)).with_suffix(".png")) for path in list_images(source)]
    outputs: dict[Path, Path] = {}
    for path, output in pairs:
        if output in outputs:
            raise UsageError(f"{outputs[output]} and {path} would both be written to {output}: rename one")
        outputs[output] = path
    return pairs


def run(arguments: argparse.Namespace) -> None:
    """Upscale everything that `plan` lists.

    Raises:
        UsageError: an option cannot be used.
        MegaSRError: the checkpoint, the prior or an image cannot be read, or an output cannot be written.
    """
    pairs = plan(arguments.input, arguments.output)
    from megasr.images import read_image, write_png

    pipeline = _pipeline(arguments)
    for source, target in pairs:
        restored = pipeline(
            read_image(source),
            prompt=arguments.tags,
            keys=[source.stem],
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
            output_type="np",
        )
        write_png(restored.images[0], target)
        print(target)


def _pipeline(arguments: argparse.Namespace) -> MegaSRPipeline:
    import torch

    from megasr.inference.pipeline import MegaSRPipeline

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return MegaSRPipeline.from_checkpoint(arguments.checkpoint, prior=arguments.prior, device=device)
