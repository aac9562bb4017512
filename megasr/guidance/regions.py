"""Extractors of region maps: depth, normals, segmentation, superpixels, saliency; noise is the control."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extractors import (
    MapNetwork,
    Preprocessing,
    Size,
    Views,
    load_transformers,
    read_preprocessing,
    save_transformers,
)
from megasr.images import from_uint8, resize, to_uint8
from megasr.rng import keyed_normal

# Height of the whole range in shorter sides of the image: the best of 0.1 to 40 on rendered scenes with exact inverse
# depth, 14 to 16 degrees from the true normals on average (a map that faces the viewer everywhere: 33).
RELIEF = 0.7


def normals_from_depth(depth: torch.Tensor, relief: float = RELIEF) -> torch.Tensor:
    """Pseudo-normals: those of a depth map taken for a relief.

    Inverse depth that is normalised per image has lost its scale and shift, and the focal length is unknown: slants are
    right in direction and arbitrary in steepness. The relief's height towards the viewer is `relief * min(H, W) *
    depth` in pixels; with h its derivatives (Sobel, borders replicated), n = (-h_x, -h_y, 1) / |.|.

    Args:
        depth: (B, 1, H, W) in [0, 1], near = bright.
        relief: height of the relief in shorter sides of the image.

    Returns:
        (B, 3, H, W) float32 in [0, 1]: (n + 1) / 2, camera x right, y up, z to the viewer. A flat map faces the viewer.
    """
    height = depth.float() * (relief * min(depth.shape[-2:]))
    padded = F.pad(height, (1, 1, 1, 1), mode="replicate")
    right = _smoothed(padded[..., 2:] - padded[..., :-2], -2)
    down = _smoothed(padded[..., 2:, :] - padded[..., :-2, :], -1)
    normal = torch.cat([-right, down, torch.ones_like(height)], 1)  # rows grow downwards, y upwards
    return F.normalize(normal, dim=1).add(1).mul(0.5).clamp(0, 1)


def _smoothed(difference: torch.Tensor, dim: int) -> torch.Tensor:
    """Sobel's smoothing (1, 2, 1) / 4 across a central difference over two pixels, whose half is the derivative."""
    length = difference.shape[dim] - 2
    before, middle, after = (difference.narrow(dim, start, length) for start in range(3))
    return (before + 2 * middle + after) / 8


ARCHITECTURE = "DepthAnythingForDepthEstimation"
_DEPTH_SHORTER_PX = 518  # of Depth Anything's own processor
_LEAST_SPAN = 1e-5  # of the largest value: a range below that is rounding, not depth


class DepthNetwork(MapNetwork):
    """Inverse depth, near = bright. Its representation is the backbone's four feature maps.

    Args:
        model: transformers' DepthAnythingForDepthEstimation, of relative depth.
        preprocessing: size and normalisation of the image that it sees.
    """

    gives = ("depth", "normal")
    outputs = ("depth",)

    def __init__(self, model: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """Four maps (B, C, h / patch, w / patch) from layers of growing depth, without the class token."""
        image = self.preprocessing.prepare(views, self.model.config.patch_size).to(self.device, self.dtype)
        rows = image.shape[-2] // self.model.config.patch_size
        tokens = self.model.backbone.forward_with_filtered_kwargs(image).feature_maps
        return tuple(x[:, 1:].transpose(1, 2).unflatten(2, (rows, -1)) for x in tokens)

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Inverse depth of any scale and shift, (B, 1, h, w) float32."""
        grid = representation[0].shape[-2:]
        tokens = [F.pad(x.flatten(2).transpose(1, 2), (0, 0, 1, 0)) for x in representation]
        fused = [x.float() for x in self.model.neck(tokens, *grid)]
        # The head in float32: depth in bfloat16 has steps, and normals are its derivative.
        weights = {name: value.float() for name, value in self.model.head.named_parameters()}
        with torch.autocast(self.device.type, enabled=False):
            depth = torch.func.functional_call(self.model.head, weights, (fused, *grid))
        return {"depth": depth[:, None]}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """Depth (B, 1, *size), normalised per image, and pseudo-normals (B, 3, *size) of it."""
        depth = normalise_depth(F.interpolate(raw["depth"].float(), size, mode="bilinear", align_corners=False))
        return {name: normals_from_depth(depth) if name == "normal" else depth for name in names}

    def export(self, folder: Path) -> None:
        """Write a transformers folder."""
        save_transformers(self.model, self.preprocessing, folder)


def normalise_depth(depth: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) of any scale and shift -> [0, 1], the least value of each image to 0 and the largest to 1.

    A constant map gives zeros: nothing is near.
    """
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    least = torch.maximum(low.abs(), high.abs()) * _LEAST_SPAN
    span = torch.maximum(high - low, least.clamp_min(torch.finfo(depth.dtype).tiny))
    return ((depth - low) / span).clamp(0, 1)


def load_depth(source: str) -> DepthNetwork:
    """A frozen depth network in float32 from a name of the weights manifest, a cached hub id or a transformers folder.

    Raises:
        MegaSRError: the folder is missing, broken, of another architecture, or of a network of metric depth.
    """
    folder, model = load_transformers(source, "depth network", (ARCHITECTURE,))
    if model.config.depth_estimation_type != "relative":  # such a network predicts distances: far would be bright
        kind = model.config.depth_estimation_type
        raise MegaSRError(f"depth network {source!r} in {folder} predicts {kind} depth; needed: a relative one")
    return DepthNetwork(model, read_preprocessing(folder, f"depth network {source!r}", _DEPTH_SHORTER_PX)).freeze()


CLASSES_FILE = Path(__file__).parent.parent / "assets" / "ade20k.json"
_SEGMENTATION_SHORTER_PX = 512
_MULTIPLE = 32  # the coarsest features of the usual backbones
_SHARE_OF_NAMES = 0.9  # that must be in their places: spellings differ between checkpoints
_LEAST_PROBABILITY = 1e-6


@cache
def ade20k_classes() -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Names and colours (RGB, 0...255) of ADE20K's classes (Zhou et al. 2017) in the order of the labels.

    The colours are those of the data set's tools and of ControlNet; road and skyscraper share one.
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
        return {"segmentation": self._logits(representation)}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """The colour of the most likely class, (B, 3, *size)."""
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
        return self.model.decode_head(features).float()


class _Segformer(SegmentationNetwork):
    """SegFormer (Xie et al., 2105.15203)."""

    def _features(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.segformer(image, output_hidden_states=True).hidden_states)


class _UperNet(SegmentationNetwork):
    """UPerNet (Xiao et al., 1807.10221) on any backbone."""

    def _features(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.backbone.forward_with_filtered_kwargs(image).feature_maps)


class _Mask2Former(SegmentationNetwork):
    """Mask2Former (Cheng et al., 2112.01527); its logits are log-scores, as it sums over queries (section 3.1)."""

    def _features(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model.model.pixel_level_module.encoder(image).feature_maps)

    def _logits(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pixels = self.model.model.pixel_level_module.decoder(features, output_hidden_states=False)
        decoded = self.model.model.transformer_module(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        queries = self.model.class_predictor(decoded.intermediate_hidden_states[-1].transpose(0, 1))
        classes = queries.float().softmax(-1)[..., :-1]  # the last one is "no object"
        masks = decoded.masks_queries_logits[-1].float().sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks).clamp_min(_LEAST_PROBABILITY).log()


ARCHITECTURES: dict[str, type[SegmentationNetwork]] = {
    "SegformerForSemanticSegmentation": _Segformer,
    "UperNetForSemanticSegmentation": _UperNet,
    "Mask2FormerForUniversalSegmentation": _Mask2Former,
}


def load_segmentation(source: str) -> SegmentationNetwork:
    """A frozen segmenter in float32 from a name of the weights manifest, a cached hub id or a transformers folder.

    Raises:
        MegaSRError: the folder is missing, broken, or of an unknown architecture.
        UsageError: its classes are not ADE20K's.
    """
    what = f"segmentation network {source!r}"
    folder, model = load_transformers(source, "segmentation network", ARCHITECTURES)
    _check_classes(model.config.id2label, f"{what} in {folder}")
    network = ARCHITECTURES[type(model).__name__]
    return network(model, read_preprocessing(folder, what, _SEGMENTATION_SHORTER_PX)).freeze()


def _check_classes(id2label: Mapping[int, str], what: str) -> None:
    """Refuse other classes than ADE20K's: their indices would be given colours that mean something else.

    A class is in its place when ADE20K's name is among its synonyms ("windowpane, window"); a few may be spelt in
    another way.
    """
    classes = [name for name, _ in ade20k_classes()]
    labels = [[" ".join(part.lower().split()) for part in re.split("[,;]", label)] for label in id2label.values()]
    wrong = [place for place, (name, label) in enumerate(zip(classes, labels, strict=False)) if name not in label]
    if len(labels) != len(classes) or len(wrong) > (1 - _SHARE_OF_NAMES) * len(classes):
        place = wrong[0] if wrong else len(classes) - 1
        raise UsageError(
            f"{what} has other classes than ADE20K's {len(classes)}: it has {len(labels)}, and class {place} is "
            f"{id2label.get(place)!r}; needed: {classes[place]!r}"
        )


_WIDTH_PX = 64  # the paper's scale, at which an object is a few pixels large
_SIGMA_PX = 2.5  # at that scale: the authors' code; the paper's text says 8, which would leave little but one blob
_GREY = (0.299, 0.587, 0.114)
# Mean amplitude per pixel (a fortieth of an 8-bit level) below which a frequency fades out: lq has nothing in its upper
# ones, and the residual of their rounding errors would drown the rest.
_SILENCE = 1e-4
_FLAT = 1e-3  # relative contrast below which a map says nothing


def extract_saliency(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> spectral residual saliency (B, 1, H, W) in [0, 1] (Hou and Zhang 2007).

    Stretched to that range per image; a flat image gives zeros. Keys are not used.
    """
    height, width = image.shape[-2:]
    small_width = min(_WIDTH_PX, width)
    small = resize(image.float(), max(1, round(height * small_width / width)), small_width)
    grey = (small * torch.tensor(_GREY, device=image.device).view(3, 1, 1)).sum(1, keepdim=True)
    saliency = _smooth(_spectral_residual(grey))
    low, high = saliency.amin((-2, -1), keepdim=True), saliency.amax((-2, -1), keepdim=True)
    # Asked this way round, what is not a number stays one, instead of being called flat.
    stretched = torch.where(high - low <= _FLAT * high, 0, (saliency - low) / (high - low))
    return resize(stretched, height, width)


def _spectral_residual(grey: torch.Tensor) -> torch.Tensor:
    """(B, 1, h, w) -> squared amplitude of what is left when each frequency is divided by its neighbours."""
    height, width = grey.shape[-2:]
    # A spectrum is that of the image repeated: unmirrored, the jump from one border to the other stands out most.
    wide = torch.cat([grey, grey.flip(-1)], -1)
    spectrum = torch.fft.fft2(torch.cat([wide, wide.flip(-2)], -2), norm="forward")
    floored = spectrum.abs().clamp(min=_SILENCE)
    log = floored.log()
    rows = log + log.roll(1, -2) + log.roll(-1, -2)  # a spectrum is periodic
    mean_3x3 = (rows + rows.roll(1, -1) + rows.roll(-1, -1)) / 9
    # Over the plain amplitude, absent frequencies would be as loud as the rest, in the phase of a rounding error.
    residual = torch.fft.ifft2((log - mean_3x3).exp() * spectrum / floored, norm="forward")
    return residual.abs().square()[..., :height, :width]


def _smooth(saliency: torch.Tensor) -> torch.Tensor:
    """Gaussian over (B, 1, h, w). Not a convolution: those round in a way that depends on the batch and on autocast."""
    radius = round(3 * _SIGMA_PX)
    offsets = torch.arange(-radius, radius + 1, device=saliency.device, dtype=saliency.dtype)
    weights = torch.exp(-0.5 * (offsets / _SIGMA_PX) ** 2)
    weights = weights / weights.sum()
    rows = (F.pad(saliency, (radius,) * 4, mode="replicate").unfold(-2, len(weights), 1) * weights).sum(-1)
    return (rows.unfold(-1, len(weights), 1) * weights).sum(-1)


_PIXELS_PER_REGION = 256
# After three iterations regions hardly move, and the connectivity pass would take longer than SLIC itself.
_ITERATIONS = 3


def extract_superpixel(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, H, W) in [0, 1], constant in each region. Keys are not used."""
    return torch.stack([from_uint8(_mean_colours(photo)) for photo in to_uint8(image)]).to(image.device)


def _mean_colours(photo: np.ndarray) -> np.ndarray:
    from skimage.segmentation import slic

    height, width = photo.shape[:2]
    regions = slic(
        photo,
        n_segments=max(1, height * width // _PIXELS_PER_REGION),
        max_num_iter=_ITERATIONS,
        enforce_connectivity=False,
        start_label=0,
    ).ravel()
    counts = np.maximum(np.bincount(regions), 1)
    sums = [np.bincount(regions, weights=photo[..., channel].ravel()) for channel in range(3)]
    means = np.stack([total / counts for total in sums], axis=1)
    return means[regions].reshape(photo.shape).round().astype(np.uint8)


_CELL_PX = 16  # as coarse as the superpixels: white noise would average to grey at the sites of the network


def extract_noise(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """A smooth random map (B, 1, H, W) in [0, 1], a function of the key and the size alone."""
    height, width = image.shape[-2:]
    cells = (1, -(-height // _CELL_PX) + 1, -(-width // _CELL_PX) + 1)
    coarse = torch.special.ndtr(keyed_normal(0, keys, cells, "guidance_noise"))  # uniform in (0, 1)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return smooth.clamp(0, 1).to(image.device)
