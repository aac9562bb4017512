"""A page in the browser: drop a photograph, choose what guides its restoration, see the maps and both pictures.

It needs gradio (`pip install megasr[demo]`), asks no other server for anything and sends nothing anywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from PIL import Image

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extract import MAX_STRENGTH
from megasr.guidance.registry import get_guidance
from megasr.images import ColorFix, decode_image, resize, to_uint8, upsample_lq
from megasr.inference.pipeline import PRESETS, to_tensors
from megasr.inference.upscale import Progress, no_progress, step_callback

if TYPE_CHECKING:
    import gradio as gr

    from megasr.inference.pipeline import MegaSRPipeline

_MOST_BYTES_PER_PIXEL = 8  # RGB and alpha of 16 bits, not compressed
_UPLOADS_KEPT_S = 3600
_ONE_AT_A_TIME = "pipeline"  # tags and restorations of all visitors: each takes the whole machine
AS_TRAINED = "as trained"
Picture = tuple[Image.Image, str]  # with its caption


def restore_for_page(
    pipeline: MegaSRPipeline,
    photograph: Image.Image,
    options: Mapping[str, Any],
    progress: Progress = no_progress,
) -> tuple[tuple[Image.Image, Image.Image], list[Picture], str]:
    """Restore with arguments of the pipeline's call; raises as the pipeline does.

    Returns:
        lq enlarged and sr, of one size; the guidance maps with their names; and a line about it.
    """
    started = time.perf_counter()
    output = pipeline(photograph, callback_on_step_end=step_callback(progress), **options)
    sr: Image.Image = output.images[0]
    enlarged = Image.fromarray(to_uint8(resize(to_tensors(photograph)[0][None], sr.height, sr.width))[0])
    maps = [
        (Image.fromarray(to_uint8(get_guidance(name).render(image[0].cpu()))), name)
        for name, image in output.maps.items()
    ]
    sizes = f"{photograph.width}x{photograph.height} to {sr.width}x{sr.height} px"
    line = f"{sizes} in {time.perf_counter() - started:.1f} s, seed {options.get('seed', pipeline.module.seed)}"
    return (enlarged, sr), maps, line


def read_upload(path: str, max_pixels: int) -> Image.Image:
    """An uploaded photograph, upright, in 8-bit RGB.

    Raises:
        MegaSRError: it is no image, or larger than max_pixels; that is seen before it is decoded.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise MegaSRError(f"the photograph is not here any more ({error.strerror}): drop it again") from error
    return Image.fromarray(decode_image(content, Path(path).name, max_pixels))


def suggest_tags(pipeline: MegaSRPipeline, photograph: Image.Image | None) -> str:
    """Tags of a photograph by the adapter's tagger; "" without a tagger or a photograph."""
    tagger = pipeline.module.tagger
    if tagger is None or photograph is None:
        return ""
    lq = to_tensors(photograph)[0][None].to(pipeline.device)
    with torch.no_grad():
        return tagger(upsample_lq(lq, pipeline.scale_factor))[0]


def read_options(guidance: tuple[str, ...], values: tuple[Any, ...], tile: int | None) -> dict[str, Any]:
    """The page's fields as arguments of the pipeline's call.

    Args:
        guidance: the adapter's types.
        values: tags, preset, colour fix, seed, and for every type whether it is on and its strength.
        tile: see MegaSRPipeline.__call__.
    """
    tags, preset, color_fix, seed, *switches = values
    enabled, strengths = switches[: len(guidance)], switches[len(guidance) :]
    by_type = {name: strength if on else 0.0 for name, on, strength in zip(guidance, enabled, strengths, strict=True)}
    return {
        "prompt": tags.strip(),
        "seed": int(seed),
        "tile": tile,
        **({"guidance": by_type} if guidance else {}),
        **({"preset": preset} if preset != AS_TRAINED else {}),
        **({"color_fix": color_fix} if color_fix != AS_TRAINED else {}),
    }


def import_gradio() -> Any:
    """gradio, with its analytics off.

    Raises:
        MegaSRError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise MegaSRError("the demo needs gradio: pip install megasr[demo]") from error
    return gradio


def make_page(pipeline: MegaSRPipeline, tile: int | None = None, max_pixels: int = 2048**2) -> gr.Blocks:
    """The page around a pipeline; `serve` serves it.

    Photographs of more than max_pixels are refused; see MegaSRPipeline.__call__ for `tile`.

    Raises:
        MegaSRError: gradio is not installed.
    """
    gr = import_gradio()

    def upscale(upload: str | None, *values: Any, progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008 (gradio finds it by its default)
        if upload is None:
            raise gr.Error("Drop a photograph first.", duration=5, print_exception=False)
        try:
            photograph = read_upload(upload, max_pixels)
            options = read_options(pipeline.guidance, values, tile)
            return restore_for_page(pipeline, photograph, options, lambda share: progress(share, desc="restoring"))
        except (UsageError, MegaSRError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def suggest(upload: str) -> str:
        try:
            return suggest_tags(pipeline, read_upload(upload, max_pixels))
        except MegaSRError:  # the button reports it
            return ""

    with gr.Blocks(title="megasr", analytics_enabled=False, delete_cache=(_UPLOADS_KEPT_S,) * 2) as page:
        gr.Markdown("## megasr\nDrop a photograph, choose what guides its restoration, and compare.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                photograph, fields, button = _fields(gr, pipeline)
            with gr.Column(scale=3, min_width=420):
                both, maps, line = _results(gr, pipeline)
        if pipeline.module.tagger is not None:
            photograph.upload(suggest, photograph, fields[0], show_progress="hidden", concurrency_id=_ONE_AT_A_TIME)
        button.click(
            upscale, [photograph, *fields], [both, maps, line], show_progress_on=[both], concurrency_id=_ONE_AT_A_TIME
        )
    return page


def _fields(gr: Any, pipeline: MegaSRPipeline) -> tuple[Any, list[Any], Any]:
    """Photograph, the other fields in the order of read_options, and the button."""
    # As a file: gradio would decode it without limits, and in more formats than ours.
    photograph = gr.Image(
        type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Photograph", height=280
    )
    hint, reads = "comma-separated, such as: brick wall, window", pipeline.module.adapter.text
    if not reads:
        hint = "this adapter was trained without words"
    elif not getattr(pipeline.module.tagger, "keep_given", True):
        hint, reads = "this adapter's tagger decides", False
    tags = gr.Textbox(label="Tags", placeholder=hint, interactive=reads, elem_id="tags")
    enabled, strengths = [], []
    with gr.Group():
        for name in pipeline.guidance:
            with gr.Row(equal_height=True):
                enabled.append(gr.Checkbox(True, label=name, scale=1, min_width=150, elem_id=f"show-{name}"))
                strength = gr.Slider(0, MAX_STRENGTH, 1, step=0.05, label="strength", scale=2, min_width=220,
                                     elem_id=f"strength-{name}")  # fmt: skip
                strengths.append(strength)
    with gr.Row():
        preset = gr.Dropdown([AS_TRAINED, *PRESETS], value=AS_TRAINED, label="Steps", min_width=100)
        color_fix = gr.Dropdown([AS_TRAINED, *get_args(ColorFix)], value=AS_TRAINED, label="Colour fix", min_width=100)
        seed = gr.Number(pipeline.module.seed, label="Seed", precision=0, minimum=0, min_width=80)
    button = gr.Button("Upscale", variant="primary", elem_id="upscale")
    return photograph, [tags, preset, color_fix, seed, *enabled, *strengths], button


def _results(gr: Any, pipeline: MegaSRPipeline) -> tuple[Any, Any, Any]:
    """The components for both pictures, the maps, and the line about them."""
    both = gr.ImageSlider(label="Bicubic and restored", format="png", height=480, max_height=480, elem_id="both")
    line = gr.Markdown(elem_id="line")
    columns = max(1, min(4, len(pipeline.guidance)))
    maps = gr.Gallery(label="Guidance maps", columns=columns, height=260, format="png", object_fit="contain",
                      visible=bool(pipeline.guidance), elem_id="maps")  # fmt: skip
    return both, maps, line


def serve(page: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, max_pixels: int = 2048**2) -> str:
    """Serve a page from this process and return its address.

    The host 0.0.0.0 lets other machines in; the port None is a free one from 7860 up. Files larger than a photograph of
    max_pixels (see make_page) can be are not taken in.

    Raises:
        MegaSRError: the port is taken.
    """
    gr = import_gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, address, _ = page.launch(
            server_name=host, server_port=port, theme=theme, quiet=True, prevent_thread_lock=True, share=False,
            ssr_mode=False, footer_links=[], enable_monitoring=False, css="footer { display: none }",
            max_file_size=_MOST_BYTES_PER_PIXEL * max_pixels + 2**20,
        )  # fmt: skip
    except OSError as error:
        raise MegaSRError(f"cannot serve on {host}, port {port or '7860 to 7959'}: {error}") from error
    return address
