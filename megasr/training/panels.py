"""Pictures of a training run: the images of one sample in a row, and a heat map of how strong every branch is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from megasr.images import to_uint8

_MIN_HEIGHT_PX = 192  # smaller images are enlarged by a whole factor


def strip(images: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Images of one sample side by side, enlarged without smoothing to the size of the largest.

    Args:
        images: name -> (C, h, w) in [0, 1] of one aspect ratio; the mean is shown of what has not three channels.

    Returns:
        (H, W, 3) uint8.
    """
    from torchvision.utils import make_grid

    height, width = max(tuple(image.shape[-2:]) for image in images.values())
    factor = -(-_MIN_HEIGHT_PX // height)
    rgb = [image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1) for image in images.values()]
    tiles = [F.interpolate(image[None].float(), (height * factor, width * factor), mode="nearest")[0] for image in rgb]
    return to_uint8(make_grid(tiles, nrow=len(tiles), padding=4, pad_value=1.0))


def heat_map(strengths: Mapping[str, float], title: str) -> np.ndarray:
    """Sites (rows, in the order of the forward pass) by branches (columns): how strong every branch is, in per cent.

    Args:
        strengths: gate/<site> and modulation/<site>/<branch> -> share of the features (see SiteProbes). Every column is
            coloured from 0 to its largest value.
        title: above the picture.

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = {}
    for key, value in strengths.items():
        kind, site, *branch = key.split("/")
        cells[site, branch[0] if kind == "modulation" else "image tokens"] = value
    sites, branches = (list(dict.fromkeys(pair[axis] for pair in cells)) for axis in (0, 1))
    values = np.array([[cells.get((site, branch), np.nan) for branch in branches] for site in sites])
    largest = np.nanmax(values, axis=0)
    figure = Figure(figsize=(3 + 1.2 * len(branches), 1.2 + 0.3 * len(sites)), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.imshow(values / np.where(largest > 0, largest, 1), cmap="Reds", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(branches)), branches)
    axes.set_yticks(range(len(sites)), sites)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "white" if value > 0.6 * largest[column] else "black"
            axes.text(column, row, f"{100 * value:.3g} %", ha="center", va="center", color=color)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
