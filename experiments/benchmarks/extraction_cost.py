"""What extraction costs of a training step at SD 2.1's size, in operations: nothing is run, so any machine will do.

    python -m experiments.benchmarks.extraction_cost --output extraction_cost.json

Everything is built on the meta device and torch's counter adds up the floating-point operations of matrix products,
convolutions and attention (a multiply-add is two) for one image. Time is something else: normalisation, activations
and resizing are not counted, and a convolution of 64 channels does not reach the speed of a wide matrix product.

    step        VAE encoder on hq, text encoder, forward and backward of U-Net and ControlNet with CSM and MSFM
    extraction  HED, depth, segmentation and CLIP's vision tower on lq, without gradients; tags come from the same tower
    share       extraction / (extraction + step); with baked maps and tokens nothing is extracted
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.record import publish
from megasr.guidance.edges import HedNetwork
from megasr.guidance.extractors import Views
from megasr.guidance.regions import ade20k_classes
from megasr.networks.config import AdapterConfig
from megasr.networks.network import MegaSRNetwork
from megasr.networks.parameters import build_on_meta
from megasr.networks.sites import Semantics
from megasr.semantics.clip import tokens_and_embedding

_SIZE_PX = 512
_DEPTH_PX = 518  # what Depth Anything's processor makes of it
_LATENT = (4, _SIZE_PX // 8, _SIZE_PX // 8)
_TEXT = (77, 1024)
# DINOv2 of Depth Anything V2: width, layers, heads, and the widths of its neck and fusion.
_DEPTH_SIZES = {
    "small": (384, 12, 6, [48, 96, 192, 384], 64),
    "base": (768, 12, 12, [96, 192, 384, 768], 128),
    "large": (1024, 24, 16, [256, 512, 1024, 1024], 256),
}
_DEPTH_TAPS = {12: (3, 6, 9, 12), 24: (5, 12, 18, 24)}


def count(run: Callable[[], Any]) -> float:
    """Operations of a call, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def step() -> dict[str, float]:
    """Operations of one image in a training step, part by part."""
    prior = build_on_meta("sd21-base")
    config = AdapterConfig(guidance=("hed", "depth", "segmentation"), image=True)
    with torch.device("meta"):
        network = MegaSRNetwork(prior, config)
        image, z_t, text = torch.rand(1, 3, _SIZE_PX, _SIZE_PX), torch.rand(1, *_LATENT), torch.rand(1, *_TEXT)
        maps = {g.name: torch.rand(1, g.channels, _SIZE_PX, _SIZE_PX) for g in network.guidance}
        tokens, timesteps = torch.rand(1, 256, 1280), torch.zeros(1, dtype=torch.long)
        words = torch.zeros(1, _TEXT[0], dtype=torch.long)

        def train() -> None:
            conditions = network.conditions(image, Semantics(text, tokens, None), maps)
            network(z_t, timesteps, conditions).square().mean().backward()

        with torch.no_grad():
            frozen = {
                "vae": count(lambda: prior.encode(image)),
                "text_encoder": count(lambda: prior.text_encoder.embed(words)),
            }
        return frozen | {"unet_and_controlnet_forward_and_backward": count(train)}


def depth_network(size: str) -> Any:
    """Depth Anything V2."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    width, layers, heads, neck, fusion = _DEPTH_SIZES[size]
    backbone = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=_DEPTH_PX, patch_size=14,
        out_features=[f"stage{layer}" for layer in _DEPTH_TAPS[layers]], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=width, neck_hidden_sizes=neck, fusion_hidden_size=fusion
    )
    return DepthAnythingForDepthEstimation(config)


def segmentation_network() -> Any:
    """UperNet on ConvNeXt small."""
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    backbone = ConvNextConfig(depths=[3, 3, 27, 3], hidden_sizes=[96, 192, 384, 768], out_features=stages)
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=512, use_auxiliary_head=False, num_labels=len(ade20k_classes())
    )
    return UperNetForSemanticSegmentation(config)


def extractors(batch_size: int) -> dict[str, Callable[[], Any]]:
    """Every extractor on random images, on torch's default device; to be called without gradients."""
    import open_clip

    image, hed = torch.rand(batch_size, 3, _SIZE_PX, _SIZE_PX), HedNetwork()
    for_depth = torch.rand(batch_size, 3, _DEPTH_PX, _DEPTH_PX)
    config = open_clip.get_model_config("ViT-H-14")
    tower = open_clip.CLIP(**{key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")})
    found: dict[str, Callable[[], Any]] = {"hed": lambda: hed.decode(hed.encode(Views(image)), hed.outputs)}
    for size in _DEPTH_SIZES:
        found[f"depth_{size}"] = partial(depth_network(size).eval(), pixel_values=for_depth)
    found["segmentation"] = partial(segmentation_network().eval(), pixel_values=image)
    found["clip_vit_h14"] = lambda: tokens_and_embedding(tower, image)
    return found


@torch.no_grad()
def extraction() -> dict[str, float]:
    """Operations of every extractor on one image."""
    with torch.device("meta"):
        return {name: count(run) for name, run in extractors(1).items()}


def main() -> None:
    """Count, and publish the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the record")
    options = parser.parse_args()
    trained, extracted = step(), extraction()
    results: dict[str, Any] = {"step_gflop": trained, "extraction_gflop": extracted, "share": {}}
    for size in _DEPTH_SIZES:
        total = sum(extracted[name] for name in ("hed", f"depth_{size}", "segmentation", "clip_vit_h14"))
        results["share"][f"depth_{size}"] = total / (total + sum(trained.values()))
    publish("extraction_cost", {"size_px": _SIZE_PX, "batch": 1}, results, options.output)


if __name__ == "__main__":
    main()
