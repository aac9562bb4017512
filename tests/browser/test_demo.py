"""The demo in a real browser: a photograph is dropped, guidance is switched, and what is shown is what Python gives."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from megasr.inference.demo import make_page, serve, suggest_tags
from megasr.inference.pipeline import MegaSRPipeline
from megasr.networks.config import AdapterConfig
from megasr.rng import numpy_generator
from megasr.semantics.tags import TaggerConfig
from megasr.training.config import SamplerConfig
from megasr.training.module import MegaSRModule

if TYPE_CHECKING:
    from playwright.sync_api import Page

# PNG bytes of a picture, as the browser holds it.
READ = """async (image) => {
  const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""


@pytest.fixture(scope="module")
def pipeline() -> MegaSRPipeline:
    adapter = AdapterConfig(guidance=("canny", "depth"), saft_width=16, fusion_init="as_drawn")
    sampler = SamplerConfig(num_steps=2, start_fraction=0.8)
    tagger = TaggerConfig(kind="clip", model="tiny", vocabulary="tiny")
    return MegaSRPipeline(MegaSRModule(prior="tiny", init="tiny", adapter=adapter, sampler=sampler, tagger=tagger))


@pytest.fixture(scope="module")
def address(pipeline: MegaSRPipeline) -> Iterator[str]:
    pytest.importorskip("gradio")
    page = make_page(pipeline, max_pixels=1000)
    yield serve(page)
    page.close()


@pytest.fixture
def demo(windows: Callable, address: str) -> Iterator[Page]:
    """The page, loaded; afterwards nothing may have been asked of another server, and no error reported."""
    page, seen = windows(viewport={"width": 1280, "height": 1000})
    seen.problems.clear()
    page.goto(address)
    page.wait_for_selector("#upscale")
    yield page
    assert [url for url in seen.requests if not url.startswith((address, "blob:", "data:"))] == []
    assert [problem for problem in seen.problems if "Error" in problem] == []


def drop(page: Page, folder: Path, side_px: int) -> Image.Image:
    pixels = numpy_generator(0, "demo").integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    photograph = Image.fromarray(pixels)
    photograph.save(folder / "photo.png")
    page.set_input_files("input[type=file]", folder / "photo.png")
    page.wait_for_selector("[data-testid=image] img, .image-frame img")
    return photograph


def shown(page: Page) -> np.ndarray:
    content = page.locator("#both img").last.evaluate(READ)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_what_is_shown_is_what_the_pipeline_gives(demo: Page, pipeline: MegaSRPipeline, tmp_path: Path) -> None:
    photograph = drop(demo, tmp_path, 12)
    found = suggest_tags(pipeline, photograph)
    assert found
    demo.wait_for_function("found => document.querySelector('#tags textarea, #tags input').value === found", arg=found)
    demo.click("#upscale")
    demo.wait_for_selector("#line:has-text('12x12 to 48x48 px')")
    assert demo.locator("#maps img").count() == 2
    np.testing.assert_array_equal(shown(demo), pipeline(photograph, output_type="np").images[0])

    demo.get_by_label("Tags").fill("sky")
    demo.locator("#show-canny input").uncheck()
    demo.locator("#strength-depth input[type=number]").fill("0.5")
    demo.get_by_label("Seed").fill("7")
    demo.get_by_label("Seed").press("Tab")
    demo.click("#upscale")
    demo.wait_for_selector("#line:has-text('seed 7')")
    assert demo.locator("#maps img").count() == 1
    options = {"seed": 7, "prompt": "sky", "output_type": "np"}
    guided = pipeline(photograph, **options, guidance={"canny": 0, "depth": 0.5}).images[0]
    np.testing.assert_array_equal(shown(demo), guided)
    assert not np.array_equal(guided, pipeline(photograph, **options).images[0])


def test_what_cannot_be_done_is_said(demo: Page, tmp_path: Path) -> None:
    demo.click("#upscale")
    demo.get_by_text("Drop a photograph first.").wait_for()
    drop(demo, tmp_path, 32)
    demo.click("#upscale")
    demo.get_by_text("32x32 px are more than 1000 px").wait_for()
