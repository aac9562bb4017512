"""Small random networks that make maps, written in the formats of the public checkpoints.

No layer has fewer channels than a published one, 32: of fewer, a CPU's kernels for bfloat16 may be wrong. oneDNN's
convolution of 8 channels with kernel = stride = 8 was off by 110 % under AMX (torch 2.15); of 32 and more it is right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from megasr.guidance.regions import ade20k_classes
from megasr.rng import seeded_initialisation, torch_generator

SegmentationKind = Literal["segformer", "upernet", "mask2former"]
SEGMENTATION_KINDS: tuple[SegmentationKind, ...] = ("segformer", "upernet", "mask2former")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def hed_state(widths: tuple[int, ...] = (32, 32, 48, 48, 48), seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with the names of ControlNetHED.pth (whose widths are 64, 128, 256, 512, 512)."""
    state = {"norm": torch.tensor([122.7, 116.7, 104.0]).view(1, 3, 1, 1)}
    width_in = 3
    for block, (width, count) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True), start=1):
        for place in range(count):
            state |= _layer(f"block{block}.convs.{place}", (width, width_in, 3, 3), seed)
            width_in = width
        state |= _layer(f"block{block}.projection", (1, width, 1, 1), seed)
    state["block1.convs.0.weight"] /= 100  # its images are in [0, 255]
    return state


def write_hed(folder: Path, widths: tuple[int, ...] = (32, 32, 48, 48, 48), seed: int = 0) -> Path:
    """Write ControlNetHED.pth; returns its path."""
    return _save(hed_state(widths, seed), folder / "ControlNetHED.pth")


def sketch_state(width: int = 32, residuals: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with the names of sk_model.pth (whose width is 64)."""
    state = _layer("model0.1", (width, 3, 7, 7), seed)
    state |= _layer("model1.0", (2 * width, width, 3, 3), seed) | _layer("model1.3", (4 * width, 2 * width, 3, 3), seed)
    for block in range(residuals):
        for place in (1, 5):
            state |= _layer(f"model2.{block}.conv_block.{place}", (4 * width, 4 * width, 3, 3), seed)
    # A transposed convolution's weight is (in, out, 3, 3).
    state |= _layer("model3.0", (4 * width, 2 * width, 3, 3), seed, 2 * width)
    state |= _layer("model3.3", (2 * width, width, 3, 3), seed, width)
    return state | _layer("model4.1", (1, width, 7, 7), seed)


def write_sketch(folder: Path, width: int = 32, residuals: int = 3, seed: int = 0) -> Path:
    """Write sk_model.pth; returns its path."""
    return _save(sketch_state(width, residuals, seed), folder / "sk_model.pth")


def pidinet_state(width: int = 32, reduced: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with the names of table5_pidinet.pth (whose widths are 60 and 24)."""

    def weight(name: str, *shape: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": _normal(name, shape, seed)}

    state = weight("init_block", width, 3, 3, 3)
    widths, width_in = (width, 2 * width, 4 * width, 4 * width), width
    for stage, (count, to) in enumerate(zip((3, 4, 4, 4), widths, strict=True)):
        for place in range(count):
            name = f"block{stage + 1}_{place + 1}"
            state |= weight(f"{name}.conv1", width_in, 1, 3, 3) | weight(f"{name}.conv2", to, width_in, 1, 1)
            state[f"{name}.conv2.weight"] *= 0.2  # sums over 15 blocks stay small
            if stage and not place:
                state |= _layer(f"{name}.shortcut", (to, width_in, 1, 1), seed)
            width_in = to
        state |= _layer(f"dilations.{stage}.conv1", (reduced, to, 1, 1), seed)
        for dilation in (1, 2, 3, 4):
            state |= weight(f"dilations.{stage}.conv2_{dilation}", reduced, reduced, 3, 3)
        state |= _layer(f"attentions.{stage}.conv1", (4, reduced, 1, 1), seed)
        state |= weight(f"attentions.{stage}.conv2", 1, 4, 3, 3)
        state |= _layer(f"conv_reduces.{stage}.conv", (1, reduced, 1, 1), seed)
    state |= _layer("classifier", (1, 4, 1, 1), seed)
    return state | {"classifier.weight": state["classifier.weight"] / 10}  # probabilities between 0 and 1


def write_pidinet(folder: Path, width: int = 32, reduced: int = 32, seed: int = 0) -> Path:
    """Write table5_pidinet.pth as its training does: an epoch, and the weights of a DataParallel."""
    state = {f"module.{name}": value for name, value in pidinet_state(width, reduced, seed).items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 19, "state_dict": state}, folder / "table5_pidinet.pth")
    return folder / "table5_pidinet.pth"


# M-LSD tiny's convolutions in the order of its graph, as (width, channels per group, side): MobileNetV2's blocks of
# (width in, width), then what merges their features.
def _mlsd_shapes() -> list[tuple[int, int, int]]:
    def blocks(*widths: int) -> list[tuple[int, int, int]]:
        return [conv for a, b in pairwise(widths) for conv in ((6 * a, a, 1), (6 * a, 1, 3), (b, 6 * a, 1))]

    fine = [(32, 4, 3), (32, 1, 3), (16, 32, 1), *blocks(16, 24, 24), (32, 24, 1)]
    coarse = [*blocks(24, 32, 32, 32), *blocks(32, 64, 64, 64, 64)]
    middle = [(64, 64, 1), (64, 32, 1), (128, 128, 3), (64, 128, 3)]
    return [*fine, *coarse, *middle, (32, 64, 1), (64, 64, 3), (64, 64, 3), (64, 64, 3), (64, 64, 3), (16, 64, 1)]


def mlsd_convolutions(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random weights and biases of M-LSD tiny."""
    weights = []
    for place, (width, per_group, side) in enumerate(_mlsd_shapes()):
        state = _layer(str(place), (width, per_group, side, side), seed)
        weights.append((state[f"{place}.weight"], state[f"{place}.bias"]))
        if width < per_group:  # the last of a block
            weights[-1][0].mul_(0.3)  # sums over ten blocks stay small
    weights[-1][0].mul_(60)
    return weights


def write_mlsd(folder: Path, input_px: int = 64, seed: int = 0) -> Path:
    """Write mlsd_512x512_tiny.onnx with a smaller input: its weights, and which convolution takes which."""

    def field(number: int, value: int | bytes | str) -> bytes:
        if isinstance(value, int):
            return _varint(number << 3) + _varint(value)
        content = value.encode() if isinstance(value, str) else value
        return _varint(number << 3 | 2) + _varint(len(content)) + content

    shape = b"".join(field(1, field(1, size)) for size in (1, input_px, input_px, 4))
    graph = field(1, field(1, "image") + field(4, "Mul"))
    for place, tensors in enumerate(mlsd_convolutions(seed)):
        names = [f"{part}{place}" for part in ("filter", "bias")]
        graph += field(1, b"".join(field(1, name) for name in ("x", *names)) + field(2, "y") + field(4, "Conv"))
        for name, tensor in zip(names, tensors, strict=True):
            dims = b"".join(field(1, size) for size in tensor.shape)
            graph += field(5, dims + field(2, 1) + field(8, name) + field(9, tensor.numpy().tobytes()))
    graph += field(11, field(1, "image") + field(2, field(1, field(1, 1) + field(2, shape))))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlsd_512x512_tiny.onnx").write_bytes(field(1, 6) + field(2, "tests") + field(7, graph))
    return folder / "mlsd_512x512_tiny.onnx"


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def write_depth(folder: Path, shorter_px: int = 56, kind: str = "relative", seed: int = 0) -> Path:
    """Write Depth Anything V2 with a DINOv2 of width 48 and four layers; returns the folder."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=48,
        neck_hidden_sizes=[32, 32, 48, 48],
        fusion_hidden_size=64,  # its head has half as many
        head_hidden_size=32,
        depth_estimation_type=kind,
    )
    with seeded_initialisation(seed, "depth"):
        model = DepthAnythingForDepthEstimation(config)
    _spread(model, seed)
    with torch.no_grad():
        # A random network may predict less than nothing, which is cut off.
        model.head.conv3.weight.abs_()
        model.head.conv3.bias.fill_(1)
    size = {"height": shorter_px, "width": shorter_px}
    processor = {"image_processor_type": "DPTImageProcessor", "size": size, "ensure_multiple_of": 14}
    return _save_transformers(model, folder, processor | {"keep_aspect_ratio": True})


def write_segmentation(
    folder: Path,
    kind: SegmentationKind = "segformer",
    shorter_px: int = 64,
    names: Iterable[str] | None = None,
    seed: int = 0,
) -> Path:
    """Write a segmenter with ADE20K's classes, or with `names`; returns the folder."""
    names = [name for name, _ in ade20k_classes()] if names is None else list(names)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    with seeded_initialisation(seed, kind):
        model = {"segformer": _segformer, "upernet": _upernet, "mask2former": _mask2former}[kind](labels)
    _spread(model, seed)
    size: Any = {"height": shorter_px, "width": shorter_px}
    if kind == "mask2former":
        size = {"shortest_edge": shorter_px, "longest_edge": 4 * shorter_px}
    return _save_transformers(model, folder, {"size": size, "do_reduce_labels": True})


def _segformer(labels: dict[str, Any]) -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[32, 64, 160, 256], decoder_hidden_size=32, drop_path_rate=0.0, **labels
        )
    )


def _upernet(labels: dict[str, Any]) -> Any:
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 32, 48, 64], out_features=stages)
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=32,
            auxiliary_in_channels=48,
            auxiliary_channels=32,
            **labels,
        )
    )


def _mask2former(labels: dict[str, Any]) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = SwinConfig(
        image_size=64, embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=stages
    )
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=32,
            dim_feedforward=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=20,
            **labels,
        )
    )


def _spread(model: torch.nn.Module, seed: int) -> None:
    """Larger weights than transformers draws (0.02): with those, the maps of all images would be nearly the same."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.copy_(_normal(f"{name}", tuple(value.shape), seed))


def _layer(name: str, shape: tuple[int, ...], seed: int, width: int | None = None) -> dict[str, torch.Tensor]:
    bias = 0.1 * torch.randn(width or shape[0], generator=torch_generator(seed, name, "bias"))
    return {f"{name}.weight": _normal(name, shape, seed), f"{name}.bias": bias}


def _normal(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    spread = math.sqrt(2 / math.prod(shape[1:]))
    return spread * torch.randn(shape, generator=torch_generator(seed, name))


def _save(state: dict[str, torch.Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def _save_transformers(model: Any, folder: Path, processor: dict[str, Any]) -> Path:
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | IMAGENET, indent=2))
    return folder


def random_pictures(count: int = 2, height: int = 75, width: int = 101, seed: int = 0) -> torch.Tensor:
    """Smooth random images (count, 3, height, width) in [0, 1]; the usual sizes are multiples of nothing."""
    coarse = torch.rand(count, 3, 10, 13, generator=torch_generator(seed, "pictures"))
    return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
