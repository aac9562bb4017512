"""What is done with a trained adapter: `megasr export`, `megasr demo`, `megasr params`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megasr.commands.early import check_guidance
from megasr.commands.upscale import add_model_options, add_tile_option, check_positive
from megasr.errors import split_names
from megasr.training.folders import SHIPPED, find_checkpoint

_PRIOR = "`tiny`, `sd21-base`, `sd21-768v`, `sd-turbo`, `sdxl-base`, `sd35-medium`, a diffusers folder or a hub id"


def add_parser(commands: Any) -> None:
    """Declare the commands."""
    text = "upscale in the browser, with a switch for every guidance type; no photograph leaves this machine"
    demo = commands.add_parser("demo", help="upscale in the browser", description=text)
    add_model_options(demo)
    demo.add_argument("--device", help="as torch names it; default: cuda where there is one, else cpu")
    demo.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: 127.0.0.1)")
    demo.add_argument("--port", type=int, help="default: a free one from 7860 up")
    add_tile_option(demo)
    demo.add_argument("--max-pixels", type=int, default=2048**2, help="larger photographs are refused (2048 x 2048)")
    demo.set_defaults(run=run_demo, passes_options_on=False)

    text = "make a folder of a run's adapter, which MegaSRPipeline.from_pretrained reads, to use it or share it"
    export = commands.add_parser("export", help="make a folder of a run's adapter", description=text)
    export.add_argument("source", metavar="RUN", help=f"a run's folder, a checkpoint, or shipped: {', '.join(SHIPPED)}")
    export.add_argument("output", type=Path, metavar="OUT", help="the folder; an exported one is replaced")
    export.add_argument("--prior", help=f"{_PRIOR}; default: the training's")
    export.add_argument(
        "--include-prior",
        action="store_true",
        help="copy the prior too; extractors and CLIP that are folders stay where they are",
    )
    export.set_defaults(run=run_export, passes_options_on=False)

    text = "count trained and frozen parameters of an adapter, part by part, and its sites"
    params = commands.add_parser("params", help="count trained and frozen parameters", description=text)
    params.add_argument(
        "--prior", default="sd21-base", help=f"{_PRIOR} (default: sd21-base; the sd* names need no weights)"
    )
    params.add_argument("--guidance", nargs="*", default=[], metavar="TYPE", help="guidance types that are fused")
    params.add_argument("--image", action="store_true", help="with CSM's visual branch")
    params.add_argument("--saft-width", type=int, default=128, help="hidden channels of each SAFT (default: 128)")
    params.add_argument("--map-patch", type=int, default=1, help="side of the square of a map that a place sees (1)")
    params.add_argument("--rca", action="store_true", help="with v1's representation cross-attention")
    params.add_argument("--lq-stream", action="store_true", help="DiT4SR's stream of lq in place of the ControlNet")
    params.add_argument("--gate", choices=("linear", "channel", "scalar"), help="of CSM; default: by the prior's size")
    params.add_argument("--connector", choices=("per_site", "shared"), help="default: by the prior's size")
    params.set_defaults(run=run_params, passes_options_on=False)


def run_demo(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UsageError: an option cannot be used.
        MegaSRError: gradio is not installed, the adapter or the prior cannot be read, or the port is taken.
    """
    check_positive(arguments, "max_pixels")
    find_checkpoint(arguments.checkpoint)
    from megasr.commands.evaluate import usable_device
    from megasr.inference.demo import import_gradio, make_page, serve
    from megasr.inference.upscale import Settings, load_pipeline

    import_gradio()  # before minutes of loading, not after
    pipeline = load_pipeline(Settings(arguments.checkpoint, arguments.prior), usable_device(arguments.device))
    page = make_page(pipeline, arguments.tile, arguments.max_pixels)
    print(f"{serve(page, arguments.host, arguments.port, arguments.max_pixels)} (Ctrl-C ends it)")
    page.block_thread()


def run_export(arguments: argparse.Namespace) -> None:
    """Write the folder, with the averaged weights when the run has them.

    Raises:
        UsageError: the folder exists and holds something else, or the adapter is a control that needs hq.
        MegaSRError: the checkpoint or the prior is missing, or the folder cannot be written.
    """
    find_checkpoint(arguments.source)
    from megasr.inference.pipeline import MegaSRPipeline

    source = _checkpoint_in(Path(arguments.source)) or arguments.source
    pipeline = MegaSRPipeline.from_checkpoint(source, prior=arguments.prior)
    pipeline.save_pretrained(arguments.output, arguments.include_prior)
    print(arguments.output)


def _checkpoint_in(folder: Path) -> Path | None:
    """That of a run of `megasr fit`, whole, or of a study's training; None when the folder has neither."""
    from ablations.results import CHECKPOINT
    from megasr.training.last_checkpoint import LAST, PREVIOUS, find_last

    if any((folder / name).exists() for name in (LAST, PREVIOUS)):
        return find_last(folder)
    return folder / CHECKPOINT if (folder / CHECKPOINT).exists() else None


def run_params(arguments: argparse.Namespace) -> None:
    """Print one line per part.

    Raises:
        UsageError: a guidance type is unknown.
        MegaSRError: the prior is not on this machine.
    """
    guidance = split_names(",".join(arguments.guidance))
    for name in guidance:
        check_guidance(name)
    from megasr.networks.config import AdapterConfig
    from megasr.networks.parameters import KNOWN_PRIORS, build_on_meta, parameter_table
    from megasr.prior import load_prior

    prior = build_on_meta(arguments.prior) if arguments.prior in KNOWN_PRIORS else load_prior(arguments.prior)
    config = AdapterConfig(
        guidance=guidance, image=arguments.image, rca=arguments.rca, gate=arguments.gate, connector=arguments.connector,
        controlnet=not arguments.lq_stream, lq_stream=arguments.lq_stream, saft_width=arguments.saft_width,
        map_patch=arguments.map_patch,
    )  # fmt: skip
    print(f"{'part':<18} {'sites':>5} {'trained':>15} {'frozen':>15}")
    for row in parameter_table(prior, config):
        print(f"{row.part:<18} {row.sites or '':>5} {row.trained:>15,} {row.frozen:>15,}")
