"""What a prior draws and reconstructs, as pictures and as labelled sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from megasr.diffusion import ddim, guided, spaced_timesteps
from megasr.images import from_uint8, to_uint8
from megasr.prior import Prior
from megasr.rng import keyed_normal

SIZE_PX = 128
NUM_STEPS = 50
BATCH_SIZE = 8
NOISE_SEED = 0
MATERIAL_PROMPTS = (
    "red brick wall", "white brick wall", "grass ground", "gravel ground", "wooden floor", "blue tiled floor",
    "green marble floor", "yellow plaster wall", "purple knitted wall", "leafy wall", "snow ground", "water ground",
)  # fmt: skip
SCENE_PROMPTS = (
    "red brick house, grass ground, leafy tree, clear blue sky",
    "white plaster house, red shingle roof, glass window, flowery ground, cloudy blue sky",
    "gray brick wall, glass window, brown panelled door, asphalt ground, metal pole",
    "leafy fir tree, snow ground, wooden fence, pale morning sky",
    "water surface, sand bank, leafy tree, grass hill, orange sunset sky",
    "wooden table, red glossy apple, green glossy apple, white plaster wall",
    "wooden floor, beige plaster wall, book shelf, blue knitted cushion",
    "blue metal barrel, wooden crate, gravel ground, green corrugated wall, overcast gray sky",
    "stone boulder, leafy bush, sand ground, clear blue sky",
    "white marble column, tiled ground, stone wall",
    "straw bale, cracked soil ground, wooden house, cloudy blue sky",
    "yellow lettered sign, red brick wall, gray fur ball",
)
_LARGER = 2
_MARGIN_PX = 8
_LINE_PX = 15


@torch.no_grad()
def reconstruct(prior: Prior, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """decode(encode(hq)) of N pictures (H, W, 3) uint8, rounded to 8 bits as a file would be."""
    device, pictures = next(prior.parameters()).device, []
    for start in track(range(0, len(images), BATCH_SIZE), "reconstructing"):
        batch = from_uint8(np.stack(images[start : start + BATCH_SIZE])).to(device)
        pictures += list(to_uint8(prior.decode(prior.encode(batch))))
    return pictures


@torch.no_grad()
def generate(prior: Prior, prompts: Sequence[str], keys: Sequence[str], cfg_scale: float) -> list[np.ndarray]:
    """Pictures (128, 128, 3) uint8 of N prompts by the prior alone: DDIM, 50 steps, from pure noise.

    Args:
        prior: of any size.
        prompts: N texts; "" is the prompt that training drops to.
        keys: N names that the noise depends on, and on nothing else.
        cfg_scale: of classifier-free guidance; 1 is none.
    """
    device, pictures = next(prior.parameters()).device, []
    shape = prior.encode(torch.zeros(1, 3, SIZE_PX, SIZE_PX, device=device)).shape[1:]
    timesteps = spaced_timesteps(NUM_STEPS, 1.0, prior.schedule.num_timesteps)
    for start in track(range(0, len(prompts), BATCH_SIZE), f"sampling, guidance scale {cfg_scale:g}"):
        part = slice(start, start + BATCH_SIZE)
        words, nothing = prior.text_encoder(prompts[part]), prior.text_encoder([""] * len(prompts[part]))

        def denoise(z: torch.Tensor, t: torch.Tensor, words=words, nothing=nothing) -> torch.Tensor:  # type: ignore[no-untyped-def]
            conditional = prior.predict(z, t, words)
            return conditional if cfg_scale == 1 else guided(conditional, prior.predict(z, t, nothing), cfg_scale)

        noise = keyed_normal(NOISE_SEED, keys[part], shape, "text_to_image").to(device)
        z = ddim(denoise, prior.schedule, noise, timesteps)
        pictures += list(to_uint8(prior.decode(z)))
    return pictures


def sheet(tiles: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> np.ndarray:
    """Pictures of one size, twice enlarged, row by row, each with its caption below: (H, W, 3) uint8."""
    height, width = (_LARGER * n for n in tiles[0].shape[:2])
    font = ImageFont.load_default(size=12)
    lines = [wrap(caption, width // 6) or [""] for caption in captions]  # a letter has 6 px
    row_px = height + _LINE_PX * max(map(len, lines)) + 2 * _MARGIN_PX
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (columns * (width + _MARGIN_PX) + _MARGIN_PX, rows * row_px + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(page)
    for number, (tile, text) in enumerate(zip(tiles, lines, strict=True)):
        row, column = divmod(number, columns)
        left, top = _MARGIN_PX + column * (width + _MARGIN_PX), _MARGIN_PX + row * row_px
        page.paste(Image.fromarray(tile).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for i, line in enumerate(text):
            draw.text((left, top + height + 3 + i * _LINE_PX), line, fill="black", font=font)
    return np.asarray(page)
