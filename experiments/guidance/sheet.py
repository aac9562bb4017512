"""Every guidance type on pictures: `python -m experiments.guidance.sheet --help`.

Three rows for each picture: maps of hq, maps of lq by extractors as they came, maps of lq by the tuned ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_pipelines.samples import SampleSet
from experiments.guidance.pictures import SCALE_FACTOR, batches, photographs, scenes
from experiments.tiny.pictures import sheet
from megasr.batch import SRBatch
from megasr.errors import MegaSRError
from megasr.guidance.extract import ExtractorConfig, Networks, extract_guidance
from megasr.guidance.registry import GuidanceType, get_guidance, list_guidance
from megasr.images import to_uint8, upsample_lq, write_png


def drawable(networks: Networks) -> list[GuidanceType]:
    """The types that are made from an image and whose weights are on this machine; prints which are not."""
    types = []
    for guidance in map(get_guidance, list_guidance()):
        if guidance.source != "lq" or guidance.name == "noise":
            continue
        try:
            if guidance.load is not None:
                networks.get(guidance, torch.device("cpu"))
            types.append(guidance)
        except MegaSRError as error:
            print(f"without {guidance.name}: {error}")
    return types


def draw(
    images: SampleSet, before: Networks, after: Networks, path: Path, title: str, names: Sequence[str] | None
) -> None:
    """Write the sheet as PNG."""
    types = [guidance for guidance in drawable(before) if names is None or guidance.name in names]
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    for batch in batches(images, title):
        key, up = batch["keys"][0], upsample_lq(batch["lq"], SCALE_FACTOR)
        rows = ((f"hq {key}", batch["hq"], before), ("lq", up, before), ("lq, tuned", up, after))
        for label, image, networks in rows:
            maps = extract_guidance(SRBatch(keys=["picture"], lq=image), types, 1, networks)
            tiles.append(to_uint8(image[0]))
            captions.append(label)
            for guidance in types:
                repeated = label == "lq, tuned" and guidance.load is None
                picture = torch.ones_like(image[0]) if repeated else guidance.render(maps[guidance.name][0])
                tiles.append(to_uint8(picture))
                captions.append("" if repeated else guidance.name)
    write_png(sheet(tiles, captions, columns=len(types) + 1), path)


def main() -> None:
    """Write one sheet of scenes and one of photographs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where guidance_scenes.png and guidance_photographs.png go")
    parser.add_argument("--before", default="tiny", help="source of the weights before tuning")
    parser.add_argument("--after", default="tiny_lq", help="source of the tuned weights")
    parser.add_argument("--photographs", type=Path, help="folder (default: the shipped ones)")
    parser.add_argument("--count", type=int, default=6, help="pictures of each kind (default: 6)")
    parser.add_argument("--size", type=int, default=128, help="px of the pictures' sides (default: 128)")
    parser.add_argument("--types", nargs="+", help="guidance types (default: all whose weights are here)")
    parser.add_argument("--degradation", default="realesrgan_strong", help="what makes lq (default: realesrgan_strong)")
    options = parser.parse_args()
    before, after = (
        Networks(ExtractorConfig(dict.fromkeys(("hed", "depth", "normal", "segmentation"), source)))
        for source in (options.before, options.after)
    )
    kinds = {
        "scenes": scenes(options.count, options.degradation, options.size),
        "photographs": photographs(options.photographs, options.count, options.degradation, options.size),
    }
    for name, images in kinds.items():
        draw(images, before, after, options.folder / f"guidance_{name}.png", name, options.types)


if __name__ == "__main__":
    main()
