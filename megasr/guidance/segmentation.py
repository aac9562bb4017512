"""Semantic segmentation in the 150 classes of ADE20K, in their customary colours, by transformers networks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from megasr.errors import UsageError
from megasr.guidance.checkpoints import (
    Preprocessing,
    load_transformers,
    read_config,
    read_preprocessing,
    save_transformers,
)
from megasr.guidance.network import MapNetwork, Size, Views

CLASSES_FILE = Path(__file__).parent.parent / "assets" / "ade20k.json"
_SHORTER_PX = 512
_MULTIPLE = 32  # the coarsest features of the usual backbones
_SHARE_OF_NAMES = 0.9  # that must be in their places: spellings differ between checkpoints
_LEAST_PROBABILITY = 1e-6


@cache
def ade20k_classes() -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Names and colours (RGB, 0...255) of ADE20K's classes (Zhou et al. 2017) in the order of the labels.

    The colours are those of the data set's own tools, of mmsegmentation and of ControlNet; road and skyscraper share
    one.
    """
    return tuple((entry["name"], tuple(entry["rgb"])) for entry in json.loads(CLASSES_FILE.read_text()))


class SegmentationNetwork(MapNetwork):
    """Colours of the most likely class. Its representation is the backbone's feature maps.

    Args:
        model: a transformers network with ADE20K's classes.
        preprocessing: size and normalisation of the image that it sees.
    """

    gives = ("segmentation",)
    outputs = ("segmentation",)
    colours: torch.Tensor

    def __init__(self, model: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing
        # uint8, so that a cast of the network leaves the colours as they are.
        colours = torch.tensor([rgb for _, rgb in ade20k_classes()], dtype=torch.uint8)
        self.register_buffer("colours", colours, persistent=False)

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """Feature maps (B, C_i, h_i, w_i) of the backbone's stages, fine to coarse."""
        return self._features(self.preprocessing.prepare(views, _MULTIPLE).to(self.device, self.dtype))

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Class logits (B, 150, h, w) float32."""
        return {"segmentation": self._logits(representation)} if "segmentation" in names else {}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """The colour of the most likely class, (B, 3, *size)."""
        if "segmentation" not in names:
            return {}
        # One image at a time: logits of 150 classes at full size are large.
        labels = [
            F.interpolate(logits.float(), size, mode="bilinear", align_corners=False).argmax(1)
            for logits in raw["segmentation"].split(1)
        ]
        return {"segmentation": self.colours[torch.cat(labels)].permute(0, 3, 1, 2).float() / 255}

    def export(self, folder: Path) -> None:
        """Write a transformers folder."""
        save_transformers(self.model, self.preprocessing, folder)

    def _features(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def _logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        raise NotImplementedError


class _Segformer(SegmentationNetwork):
    """SegFormer (Xie et al., 2105.15203)."""

    def _features(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.segformer(image, output_hidden_states=True).hidden_states)

    def _logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.model.decode_head(features).float()


class _UperNet(SegmentationNetwork):
    """UPerNet (Xiao et al., 1807.10221) on any backbone."""

    def _features(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.backbone.forward_with_filtered_kwargs(image).feature_maps)

    def _logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.model.decode_head(features).float()


class _Mask2Former(SegmentationNetwork):
    """Mask2Former (Cheng et al., 2112.01527); its logits are log-scores, as it sums over queries (section 3.1)."""

    def _features(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.model.pixel_level_module.encoder(image).feature_maps)

    def _logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pixels = self.model.model.pixel_level_module.decoder(features, output_hidden_states=False)
        found = self.model.model.transformer_module(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        queries = self.model.class_predictor(found.intermediate_hidden_states[-1].transpose(0, 1))
        classes = queries.float().softmax(-1)[..., :-1]  # the last one is "no object"
        masks = found.masks_queries_logits[-1].float().sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks).clamp_min(_LEAST_PROBABILITY).log()


ARCHITECTURES: dict[str, type[SegmentationNetwork]] = {
    "SegformerForSemanticSegmentation": _Segformer,
    "UperNetForSemanticSegmentation": _UperNet,
    "Mask2FormerForUniversalSegmentation": _Mask2Former,
}


def load_segmentation(source: str) -> SegmentationNetwork:
    """A frozen segmenter in float32.

    Args:
        source: a name of the weights manifest, a hub id that is in the local cache, or a transformers folder.

    Raises:
        MegaSRError: the folder is missing, broken, or of an unknown architecture.
        UsageError: its classes are not ADE20K's.
    """
    what = f"segmentation network {source!r}"
    folder, config = read_config(source, "segmentation network", ARCHITECTURES)
    _check_classes(config.get("id2label"), f"{what} in {folder}")
    architecture = config["architectures"][0]
    model = load_transformers(folder, architecture, what)
    return ARCHITECTURES[architecture](model, read_preprocessing(folder, what, _SHORTER_PX)).freeze()


def _check_classes(id2label: Any, what: str) -> None:
    """Refuse other classes than ADE20K's: their indices would be given colours that mean something else.

    A class is in its place when ADE20K's name is among its synonyms ("windowpane, window"). A few may be spelt in
    another way, but none may bear the name of another class: that is another order.
    """
    id2label = id2label if isinstance(id2label, dict) else {}
    ours = [name for name, _ in ade20k_classes()]
    theirs = [_synonyms(id2label.get(str(place), "")) for place in range(len(ours))]
    if len(id2label) != len(ours):
        shown = ", ".join(str(name) for name in list(id2label.values())[:5])
        raise UsageError(f"{what} has {len(id2label)} classes ({shown}, ...); needed: ADE20K's {len(ours)}")
    strangers = [place for place, name in enumerate(ours) if name not in theirs[place]]
    swapped = [place for place in strangers if theirs[place][0] in ours]
    if swapped or len(strangers) > (1 - _SHARE_OF_NAMES) * len(ours):
        place = (swapped or strangers)[0]
        raise UsageError(
            f"{what} has other classes than ADE20K's, {len(strangers)} of {len(ours)} differ: "
            f"class {place} is {id2label.get(str(place))!r}, needed: {ours[place]!r}"
        )


def _synonyms(label: str) -> list[str]:
    return [" ".join(part.lower().split()) for part in re.split("[,;]", str(label))]
