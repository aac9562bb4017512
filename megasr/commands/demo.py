"""`megasr demo`: a page in the browser that upscales what is dropped on it, with a switch for every guidance type.

It runs on this machine alone: nothing is fetched from elsewhere, and no photograph leaves it.
"""

from __future__ import annotations

import argparse
from typing import Any

from megasr.commands.upscale import add_model_options, add_tile_option, check_tile_option
from megasr.errors import UsageError
from megasr.training.folders import find_checkpoint


def add_parser(commands: Any) -> None:
    """Declare `demo`."""
    parser = commands.add_parser("demo", help="upscale in the browser", description=__doc__)
    add_model_options(parser)
    parser.add_argument("--device", help="as torch names it; default: cuda where there is one, else cpu")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: a free one from 7860 up")
    add_tile_option(parser)
    parser.add_argument("--max-pixels", type=int, default=2048**2, help="larger photographs are refused (2048 x 2048)")
    parser.set_defaults(run=run, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UsageError: an option cannot be used.
        MegaSRError: gradio is not installed, the adapter or the prior cannot be read, or the port is taken.
    """
    check_tile_option(arguments)
    find_checkpoint(arguments.checkpoint)
    if arguments.max_pixels <= 0:
        raise UsageError(f"--max-pixels is {arguments.max_pixels}, must be greater than 0")
    from megasr.commands.measuring import usable_device
    from megasr.inference.demo import import_gradio, make_page, serve
    from megasr.inference.upscale import Settings, load_pipeline

    import_gradio()  # before minutes of loading, not after
    pipeline = load_pipeline(Settings(arguments.checkpoint, arguments.prior), usable_device(arguments.device))
    page = make_page(pipeline, arguments.tile, arguments.max_pixels)
    print(f"{serve(page, arguments.host, arguments.port, arguments.max_pixels)} (Ctrl-C ends it)")
    page.block_thread()
