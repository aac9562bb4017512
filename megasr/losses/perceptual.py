"""Frozen perceptual distances as losses, and the features of VGG16.

The networks are pyiqa's and torchvision's, with the weights of the metrics of the same names. Images are (B, 3, H, W),
about [0, 1]: nothing clamps them, because a clamp has no gradient where a prediction leaves the range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megasr.errors import MegaSRError, first_line, unknown_name
from megasr.evaluation import protocol
from megasr.evaluation.metrics import describe_missing, loading
from megasr.semantics.clip import load_open_clip

_VGG16 = "vgg16-397923af.pth"
_LPIPS_VGG = "LPIPS_v0.1_vgg-a78928a0.pth"
_VGG16_CHANNELS = (64, 128, 256, 512, 512)  # of its blocks
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in RGB


def _vgg16_layers() -> dict[str, int]:
    """Names of VGG16's ReLUs (block and place in it), and their places in torchvision's `features`."""
    layers, place = {}, 0
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for convolution in range(1, convolutions + 1):
            layers[f"relu{block}_{convolution}"] = place + 1
            place += 2
        place += 1  # the pooling
    return layers


VGG16_LAYERS = _vgg16_layers()


class _Frozen(nn.Module):
    """Base of what a pretrained network measures, always in float32 and on the device of the images.

    The network is no submodule: checkpoints, optimizers, EMA, `train()` and casts of the module that holds the loss do
    not reach it.

    Args:
        name: for messages.
        weights: files of megasr.evaluation.metrics.FILES.
        weights_dir: where they are looked for first.
        create: makes the network, inside `loading`.

    Raises:
        MegaSRError: weights are missing, or cannot be loaded.
    """

    def __init__(
        self, name: str, weights: Sequence[str], weights_dir: Path | None, create: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        if missing := describe_missing(weights, weights_dir):
            raise MegaSRError(f"{name} {missing}. Put the files into one folder and name it (weights_dir)")
        with loading(name, weights, weights_dir):
            self._network = (create().requires_grad_(False).eval(),)  # in a tuple, so that it is not registered

    def forward(self, *images: torch.Tensor) -> Any:
        """Apply the network to images (B, 3, H, W), about [0, 1]."""
        device = images[0].device
        network = self._network[0].to(device)
        # A distance is the small difference of features that are nearly alike: bf16 has three digits.
        with torch.autocast(device.type, enabled=False):
            return self._measure(network, *(image.float() for image in images))

    def _measure(self, network: Any, *images: torch.Tensor) -> Any:
        return network(*images).flatten()  # pyiqa's distances are (B, 1)


class LPIPS(_Frozen):
    """LPIPS 0.1 (1801.03924) on AlexNet, as the field reports it: two images (B, 3, H, W) -> (B,), 0 for equal images.

    Args:
        weights_dir: where weights are looked for first.

    Raises:
        MegaSRError: see _Frozen.
    """

    def __init__(self, weights_dir: Path | None = None) -> None:
        def create() -> nn.Module:
            from pyiqa.archs import lpips_arch

            return lpips_arch.LPIPS(net="alex")

        super().__init__("lpips (alex)", protocol.LPIPS.weights, weights_dir, create)


class DISTS(_Frozen):
    """DISTS (2004.07728): two images (B, 3, H, W) -> (B,), 0 for equal images.

    Args:
        weights_dir: where weights are looked for first.

    Raises:
        MegaSRError: see _Frozen.
    """

    def __init__(self, weights_dir: Path | None = None) -> None:
        def create() -> nn.Module:
            from pyiqa.archs import dists_arch

            return dists_arch.DISTS()

        super().__init__("dists", protocol.DISTS.weights, weights_dir, create)


class VGG16Features(_Frozen):
    """Feature maps of ImageNet's VGG16 (1409.1556): images (B, 3, H, W) -> (B, C, h, w) of each of `layers`, a list.

    Args:
        layers: names of VGG16_LAYERS.
        weights_dir: where weights are looked for first.

    Raises:
        UsageError: VGG16 has no such layer.
        MegaSRError: see _Frozen.
    """

    def __init__(
        self,
        layers: Sequence[str] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
        weights_dir: Path | None = None,
    ) -> None:
        for layer in layers:
            if layer not in VGG16_LAYERS:
                raise unknown_name("layer of VGG16", layer, VGG16_LAYERS)
        places = [VGG16_LAYERS[layer] for layer in layers]

        def create() -> nn.Module:
            from torchvision.models import vgg16

            features: nn.Module = vgg16(weights="IMAGENET1K_V1").features[: max(places) + 1]
            return features

        super().__init__("vgg16", (_VGG16,), weights_dir, create)
        self._places = places
        self.channels = tuple(_VGG16_CHANNELS[int(layer[len("relu")]) - 1] for layer in layers)

    def _measure(self, network: Any, *images: torch.Tensor) -> Any:
        (image,) = images
        mean, std = (image.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        features, found = (image - mean) / std, {}
        for place, layer in enumerate(network):
            features = layer(features)
            found[place] = features
        return [found[place] for place in self._places]


class LPIPSOnVGG16(_Frozen):
    """LPIPS 0.1 (1801.03924) on VGG16, which its authors advise for training, on feature maps that others may use too.

    Args:
        features: gives the maps.
        weights_dir: where weights are looked for first.

    Raises:
        MegaSRError: see _Frozen.
    """

    def __init__(self, features: VGG16Features, weights_dir: Path | None = None) -> None:
        def create() -> nn.Module:
            from pyiqa.archs import lpips_arch

            network = lpips_arch.LPIPS(net="vgg")
            return network.lins

        super().__init__("lpips (vgg)", (_VGG16, _LPIPS_VGG), weights_dir, create)
        self.features = features

    def forward(self, sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        """Two images (B, 3, H, W) -> (B,), 0 for equal images."""
        return self.compare(self.features(sr), self.features(hq))

    def compare(self, sr: Sequence[torch.Tensor], hq: Sequence[torch.Tensor]) -> torch.Tensor:
        """The feature maps of two images -> (B,)."""
        found: torch.Tensor = super().forward(*sr, *hq)
        return found

    def _measure(self, network: Any, *levels: torch.Tensor) -> torch.Tensor:
        units = [F.normalize(level, dim=1, eps=1e-10) for level in levels]  # every place's vector of channels
        pairs = zip(network, units[: len(network)], units[len(network) :], strict=True)
        return torch.stack([head((a - b).square()).mean((1, 2, 3)) for head, a, b in pairs]).sum(0)


class TinyClipFeatures(_Frozen):
    """Feature maps of every layer of the shipped CLIP's vision tower: images (B, 3, H, W) -> list of (B, 128, 8, 8).

    It sees images at 128 x 128 px: for tests and small worlds.
    """

    def __init__(self) -> None:
        super().__init__("tiny", (), None, lambda: load_open_clip("tiny").visual)
        (network,) = self._network
        self.channels = (network.transformer.width,) * network.transformer.layers

    def _measure(self, network: Any, *images: torch.Tensor) -> Any:
        (image,) = images
        image = F.interpolate(image, tuple(network.image_size), mode="bicubic", antialias=True)
        return network.forward_intermediates(2 * image - 1, intermediates_only=True)["image_intermediates"]


class TimmFeatures(_Frozen):
    """Feature maps of a convolutional model of timm: images (B, 3, H, W) -> one (B, C, h, w) per stage.

    Args:
        name: of the model, with its tag.

    Raises:
        MegaSRError: its weights are not in the cache of the Hugging Face hub, or timm cannot build it.
    """

    def __init__(self, name: str) -> None:
        from huggingface_hub import try_to_load_from_cache

        def create() -> nn.Module:
            import timm

            try:
                return timm.create_model(
                    name, pretrained=True, features_only=True, pretrained_cfg_overlay={"file": weights}
                )
            except Exception as error:  # timm has many
                raise MegaSRError(f"features {name}: timm cannot build it: {first_line(error)}") from error

        weights = try_to_load_from_cache(f"timm/{name}", "model.safetensors")
        if not isinstance(weights, str):
            raise MegaSRError(
                f"features {name}: its weights are not in the local cache; take vgg16 or tiny, or fetch them: "
                f"hf download timm/{name}"
            )
        super().__init__(name, (), None, create)
        (network,) = self._network
        self.channels = tuple(network.feature_info.channels())
        self._mean, self._std = (network.pretrained_cfg[key] for key in ("mean", "std"))

    def _measure(self, network: Any, *images: torch.Tensor) -> Any:
        (image,) = images
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self._mean, self._std))
        return network((image - mean) / std)


@cache
def _shared_vgg16(weights_dir: Path | None) -> VGG16Features:
    """One network for all that looks through it: terms of a loss then compute its maps once (Estimate.levels)."""
    return VGG16Features(weights_dir=weights_dir)


_BY_NAME: dict[str, Callable[[Path | None], nn.Module]] = {
    "lpips_alex": LPIPS,
    "lpips_vgg": lambda folder: LPIPSOnVGG16(_shared_vgg16(folder), folder),
    "dists": DISTS,
    "vgg16": _shared_vgg16,
    "tiny": lambda folder: TinyClipFeatures(),
}


def load_perceptual(name: str, weights_dir: str | None = None) -> nn.Module:
    """A distance (lpips_alex, lpips_vgg, dists), or features with their `channels`: vgg16, tiny, or a model of timm.

    Raises:
        MegaSRError: see _Frozen and TimmFeatures.
    """
    if name in _BY_NAME:
        return _BY_NAME[name](Path(weights_dir) if weights_dir else None)
    return TimmFeatures(name)
