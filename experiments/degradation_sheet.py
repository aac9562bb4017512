"""One photograph under draws of every degradation preset, with the parameters of each draw under its picture.

Command: python -m experiments.degradation_sheet --output docs/images/degradations
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.degradations.presets import DEGRADATIONS, get_degradation
from data_pipelines.photos import load_photo
from megasr.files import write_whole
from megasr.images import center_crop, to_uint8, upsample_lq

CROP_PX, COLUMNS, LINE_PX, MARGIN_PX = 256, 6, 13, 6


def describe(op: dict[str, Any]) -> str:
    """One operation in a line."""
    if op["op"] == "blur":
        numbers = f"cutoff {op['cutoff']:.2f}" if op["kernel"] == "sinc" else f"s={op['sigma_x']:.2f}"
        if "aniso" in op["kernel"]:
            numbers += f"x{op['sigma_y']:.2f} {np.degrees(op['theta']):+.0f}°"
        beta = f" b={op['beta']:.2f}" if "beta" in op else ""
        kernel = op["kernel"].replace("generalized", "gen")
        return f"blur {kernel} {op['size']} px {numbers}{beta}"
    if op["op"] == "resize":
        return f"resize {op['scale']:.3f} {op['mode']}"
    if op["op"] == "jpeg":
        return f"jpeg q {op['quality']}"
    strength = f"{op['sigma']:.1f}" if op["op"] == "gaussian_noise" else f"{op['scale']:.2f}"
    return f"{op['op'].replace('_', ' ')} {strength}{' grey' if op['grey'] else ''}"


def draw_sheet(hq: np.ndarray, preset: str, scale_factor: int, count: int) -> np.ndarray:
    """hq, then lq_up of the draws with their parameters below, as one picture."""
    degradation = get_degradation(preset, scale_factor)
    params = degradation.sample_params(0, [str(number) for number in range(count)])
    row_px = CROP_PX + LINE_PX * len(params[0].get("ops", [0])) + 2 * MARGIN_PX
    picture = Image.new("RGB", ((CROP_PX + MARGIN_PX) * (COLUMNS + 1), row_px * -(-count // COLUMNS)), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)

    def place(image: np.ndarray, lines: list[str], row: int, column: int) -> None:
        left, top = column * (CROP_PX + MARGIN_PX), row * row_px
        picture.paste(Image.fromarray(image), (left, top))
        for number, line in enumerate(lines):
            draw.text((left + 2, top + CROP_PX + 3 + LINE_PX * number), line, fill="black", font=font)

    place(hq, [f"hq, and lq_up of {preset} x{scale_factor}"], 0, 0)
    for number, one in enumerate(params):
        lq_up = to_uint8(upsample_lq(degradation.apply_image(hq, one)[None], scale_factor))[0]
        lines = [describe(op) for op in one.get("ops", []) if op is not None] or [preset]
        place(lq_up, lines, number // COLUMNS, number % COLUMNS + 1)
    return np.asarray(picture)


def main() -> None:
    """Write one sheet per preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--photo", default="chelsea", help="one of data_pipelines.photos")
    parser.add_argument("--draws", type=int, default=12, help="draws per preset")
    arguments = parser.parse_args()
    hq = np.ascontiguousarray(center_crop(load_photo(arguments.photo), CROP_PX))
    for preset in DEGRADATIONS:
        scale_factor = 1 if preset == "none" else 4
        num_draws = arguments.draws if "ops" in get_degradation(preset, scale_factor).sample_params(0, ["0"])[0] else 1
        path = arguments.output / f"{preset}.jpg"
        encoded = io.BytesIO()
        Image.fromarray(draw_sheet(hq, preset, scale_factor, num_draws)).save(
            encoded, "JPEG", quality=90, subsampling=0
        )
        write_whole(path, encoded.getvalue())
        print(f"{path}: {num_draws} draws")


if __name__ == "__main__":
    main()
