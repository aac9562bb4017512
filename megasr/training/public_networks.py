"""The public extractors as their published configurations have them, for counting only: no weights.

Sources: the config.json of Depth Anything V2 (2406.09414), of UPerNet on ConvNeXt small and of Mask2Former on Swin-L
(2112.01527) for ADE20K; SegFormer-B5 (2105.15203, table 6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from megasr.guidance.edges import HedNetwork, SketchNetwork
from megasr.guidance.extractors import MapNetwork, Preprocessing
from megasr.guidance.regions import ARCHITECTURES, DepthNetwork, ade20k_classes

_DEPTH_PX, _SEGMENTATION_PX = 518, 512
_STAGES = [f"stage{number}" for number in (1, 2, 3, 4)]
# DINOv2 of Depth Anything V2: width, layers, heads, the widths of its neck and fusion, the layers that are read.
_DEPTH_SIZES: Mapping[str, tuple[int, int, int, list[int], int, tuple[int, ...]]] = {
    "small": (384, 12, 6, [48, 96, 192, 384], 64, (3, 6, 9, 12)),
    "base": (768, 12, 12, [96, 192, 384, 768], 128, (3, 6, 9, 12)),
    "large": (1024, 24, 16, [256, 512, 1024, 1024], 256, (5, 12, 18, 24)),
}


def _depth(size: str) -> MapNetwork:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    width, layers, heads, neck, fusion, taps = _DEPTH_SIZES[size]
    backbone = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=_DEPTH_PX, patch_size=14,
        out_features=[f"stage{layer}" for layer in taps], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=width, neck_hidden_sizes=neck, fusion_hidden_size=fusion
    )
    return DepthNetwork(DepthAnythingForDepthEstimation(config), Preprocessing(_DEPTH_PX))


def _segmenter(name: str, model: Any) -> MapNetwork:
    return ARCHITECTURES[name](model, Preprocessing(_SEGMENTATION_PX))


def _upernet() -> MapNetwork:
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ConvNextConfig(depths=[3, 3, 27, 3], hidden_sizes=[96, 192, 384, 768], out_features=_STAGES)
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=512, use_auxiliary_head=False, num_labels=len(ade20k_classes())
    )
    return _segmenter("UperNetForSemanticSegmentation", UperNetForSemanticSegmentation(config))


def _segformer() -> MapNetwork:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[3, 6, 40, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768,
        num_labels=len(ade20k_classes()),
    )  # fmt: skip
    return _segmenter("SegformerForSemanticSegmentation", SegformerForSemanticSegmentation(config))


def _mask2former() -> MapNetwork:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12, image_size=384,
        out_features=_STAGES,
    )  # fmt: skip
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=len(ade20k_classes()))
    return _segmenter("Mask2FormerForUniversalSegmentation", Mask2FormerForUniversalSegmentation(config))


# Guidance type -> name of the weights -> how to build it; the first stands for folders that are not here.
BUILDERS: Mapping[str, Mapping[str, Callable[[], MapNetwork]]] = {
    "hed": {"controlnet-hed": HedNetwork},
    "depth": {f"depth-anything-v2-{size}": partial(_depth, size) for size in _DEPTH_SIZES},
    "normal": {f"depth-anything-v2-{size}": partial(_depth, size) for size in _DEPTH_SIZES},
    "segmentation": {
        "upernet-convnext-small-ade": _upernet,
        "segformer-b5-ade": _segformer,
        "mask2former-swin-large-ade": _mask2former,
    },
    "sketch": {"lineart-sketch": SketchNetwork},
}
