"""A recipe built without its weights: modules of fake tensors, which have sizes and no values."""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_map

from megasr.batch import SRBatch
from megasr.configs import read_config
from megasr.errors import MegaSRError
from megasr.guidance.extract import ExtractorConfig, Networks, is_tiny, load_network
from megasr.guidance.extractors import MapNetwork
from megasr.guidance.registry import GuidanceType
from megasr.networks.parameters import KNOWN_PRIORS
from megasr.prior import DENOISERS, Prior, autoencoder_class, denoiser_class
from megasr.semantics.clip import CONFIG as CLIP_CONFIG
from megasr.semantics.clip import VisionConfig, VisionEncoder, find_clip
from megasr.semantics.taggers import GivenTagger, Tagger
from megasr.semantics.tags import TaggerConfig
from megasr.semantics.text import (
    OpenClipTextEncoder,
    SD3TextEncoder,
    SDXLTextEncoder,
    Text,
    TextEncoder,
    TextStates,
    TransformersTextEncoder,
    read_zeros_for_empty,
)
from megasr.semantics.text_states import StoredTextEncoder
from megasr.training.checkpoint import typed_arguments
from megasr.training.module import FrozenParts, MegaSRModule
from megasr.weights.local import denoiser_folder, find_prior, is_sdxl

Strategy = Literal["single", "ddp", "fsdp2"]
_TOKENS = 256  # image tokens that come with the data: ViT-H-14's
_CONTEXT_LENGTH = 77  # of CLIP (2103.00020)
_DEFAULT_TOWER = "ViT-H-14"
# Options of the module that are arithmetic, or done by `cast`.
_NOT_PASSED = ("frozen_dtype", "shard_frozen", "init", "init_parts", "compile")


@dataclass(frozen=True)
class TrainingSetup:
    """What a recipe says about memory.

    Attributes:
        model: arguments of MegaSRModule as plain data.
        batch_size: samples per device and micro-batch.
        bucket_view: DDP's gradients are views of its buckets.
        precision: Lightning's.
        clips: the norm of the gradients is clipped.
        on_gpu: count as CUDA does: its autocast, foreach optimizers, blocks of 512 bytes.
        brings_maps: the guidance maps come with the data.
    """

    model: Mapping[str, Any]
    batch_size: int
    crop_size_px: int
    devices: int = 1
    strategy: Strategy = "single"
    bucket_view: bool = False
    precision: str = "32-true"
    accumulation: int = 1
    clips: bool = False
    ema: bool = False
    on_gpu: bool = True
    brings_maps: bool = False

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step."""
        return self.batch_size * self.devices * self.accumulation

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of the frozen weights."""
        return getattr(torch, str(self.model.get("frozen_dtype") or "float32"))

    @property
    def eight_bit(self) -> bool:
        """AdamW keeps its moments in 8 bits."""
        return (self.model.get("optimizer") or {}).get("state_bits") == 8

    def with_model(self, path: str, value: object) -> TrainingSetup:
        """A copy with another value of a dotted key of the model."""
        section, _, name = path.rpartition(".")
        changes = {section: {**(self.model.get(section) or {}), name: value}} if section else {name: value}
        return replace(self, model={**self.model, **changes})


def build_batch(setup: TrainingSetup, module: MegaSRModule, brought: Container[str] = ()) -> SRBatch:
    """A batch of zeros with all that the data module brings, and the maps of the guidance types in `brought`."""
    size, side, small = setup.batch_size, setup.crop_size_px, setup.crop_size_px // module.scale_factor
    dtype = torch.bfloat16 if setup.precision == "bf16-true" else torch.float32
    keys = [f"image-{i}" for i in range(size)]
    batch = SRBatch(
        keys=keys,
        hq=torch.zeros(size, 3, side, side, dtype=dtype),
        lq=torch.zeros(size, 3, small, small, dtype=dtype),
        tags=list(keys),  # distinct, as equal prompts are embedded once
        text_dropped=[False] * size,  # type: ignore[typeddict-item]
    )
    batch["maps"] = {
        g.name: torch.zeros(size, g.channels, side, side, dtype=dtype)
        for g in module.network.guidance
        if setup.brings_maps or g.name in brought
    }
    if module.vision is None:
        batch["image_tokens"] = torch.zeros(size, _TOKENS, module.adapter.image_width, dtype=dtype)
        batch["representation"] = torch.zeros(size, _TOKENS, module.adapter.representation_width, dtype=dtype)
    return batch


def module_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data -> arguments of MegaSRModule, without those that a plan handles itself."""
    optimizer = {**(model.get("optimizer") or {}), "decay_share": 0.0}  # a decay asks the trainer for its steps
    optimizer.pop("state_bits", None)
    passed = {name: value for name, value in model.items() if name not in _NOT_PASSED} | {"optimizer": optimizer}
    if passed.get("objective"):  # a step that all terms have joined takes the most
        passed["objective"] = {**passed["objective"], "term_starts": None}
    return typed_arguments(MegaSRModule, passed)


@contextmanager
def without_bytes() -> Iterator[None]:
    """Tensors that are made inside are fake: they have sizes and no bytes, and nothing is computed."""
    move = nn.Module.to
    nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]  # peft moves layers; torch no fake ones
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        nn.Module.to = move  # type: ignore[method-assign]


def build_weightless(model: Mapping[str, Any]) -> tuple[MegaSRModule, WeightlessParts]:
    """A MegaSRModule of fake tensors from plain arguments, inside `without_bytes`, and its parts with their notes."""

    class WeightlessModule(MegaSRModule):
        parts = WeightlessParts()

    return WeightlessModule(**module_arguments(model)), WeightlessModule.parts


class WeightlessPrior(Prior):
    """A prior whose parameters hold no values."""

    def fingerprint(self) -> str:
        """Nothing to identify."""
        return "no weights"


class WeightlessParts(FrozenParts):
    """Frozen parts of fake tensors.

    Attributes:
        notes: what was counted as something else, or not at all, one sentence each.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def prior(self, source: str, text_states: str | None = None) -> Prior:
        """The prior as its folder's configuration says; KNOWN_PRIORS need no folder. Text states need not exist yet.

        Raises:
            MegaSRError: it is not on this machine, or its configuration cannot be read.
        """
        try:
            built = _read_prior(find_prior(source), source)
        except MegaSRError:
            if source not in KNOWN_PRIORS:
                raise
            built = KNOWN_PRIORS[source]()
            built.text_encoder.tokenizer = Tokens(_CONTEXT_LENGTH)
            built.text_encoder.tokenizers = [built.text_encoder.tokenizer] * 2
        text_encoder = built.text_encoder
        if text_states is not None:
            text_encoder = StoredTextEncoder(_ZeroStates(text_encoder), source)
            self.notes.append("model.text_states: the text encoder is not loaded, and not counted")
        return WeightlessPrior(built.vae, built.unet, text_encoder, built.scheduler).freeze()  # type: ignore[return-value]

    def vision(self, config: VisionConfig | None) -> VisionEncoder | None:
        """The tower of the folder, or of open_clip's name; ViT-H-14 stands for a folder that is not here."""
        if config is None:
            return None
        import open_clip

        try:
            content = json.loads((find_clip(config.model) / CLIP_CONFIG).read_text())["model_cfg"]
        except (MegaSRError, OSError):
            content = open_clip.get_model_config(config.model)
        if content is None:
            self.notes.append(
                f"model.vision {config.model} is not on this machine: counted as open_clip's {_DEFAULT_TOWER}"
            )
            content = open_clip.get_model_config(_DEFAULT_TOWER)
        return _Tower(open_clip.CLIP(**{key: content[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}).visual)

    def tagger(self, config: TaggerConfig | None) -> Tagger | None:
        """Tags come with the data; the memory of a tagger is not counted."""
        if config is None:
            return None
        if config.kind in ("clip", "ram"):
            self.notes.append(f"model.tagger {config.kind}: its weights and activations are not counted")
        return GivenTagger()

    def networks(self, config: ExtractorConfig | None) -> Networks:
        """Extractors of fake tensors."""
        return _WeightlessNetworks(config)

    def perceptual(self, name: str, weights_dir: str | None) -> nn.Module:
        """VGG16, which the larger ones are, for every network of the loss."""
        if name not in _VGG16_SIZED:
            self.notes.append(f"model.objective {name}: counted as VGG16")
        features = self._shared_vgg16 if name in ("lpips_vgg", "vgg16") else _VGG16()
        return _Distance(features) if name in ("lpips_alex", "lpips_vgg", "dists") else features

    @cached_property
    def _shared_vgg16(self) -> _VGG16:
        return _VGG16()


class _Tower(VisionEncoder):
    def __init__(self, visual: nn.Module) -> None:
        nn.Module.__init__(self)
        self.visual = visual.requires_grad_(False).eval()


_VGG16_SIZED = ("lpips_vgg", "dists", "vgg16")


class _VGG16(nn.Module):
    """What LPIPS, DISTS and features of a GAN keep for the backward pass, in float32 as they compute."""

    channels = (64, 128, 256, 512, 512)

    def __init__(self) -> None:
        from torchvision.models import vgg16

        super().__init__()
        self.features = vgg16(weights=None).features.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        levels = []
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            for layer in self.features:
                if isinstance(layer, nn.MaxPool2d):
                    levels.append(image)
                image = layer(image)
        return levels


class _Distance(nn.Module):
    def __init__(self, features: _VGG16) -> None:
        super().__init__()
        self.features = features

    def forward(self, sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        return self.compare(self.features(sr), self.features(hq))

    def compare(self, sr: Sequence[torch.Tensor], hq: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([(a - b).square().mean((1, 2, 3)) for a, b in zip(sr, hq, strict=True)]).sum(0)


class _ZeroStates:
    """In the place of StoredText: zeros for every prompt, in the shapes of an encoder's states."""

    padding = (0, 0)
    weights: Mapping[str, bytes] = {}

    def __init__(self, encoder: TextEncoder) -> None:
        self._shapes = tree_map(lambda values: tuple(values.shape[1:]), encoder([""]))

    def read(self, prompts: list[str], source: str) -> Text:
        return tree_map(
            lambda shape: torch.zeros(len(prompts), *shape, dtype=torch.float16),
            self._shapes,
            is_leaf=lambda value: isinstance(value, tuple) and not isinstance(value, TextStates),
        )


class Tokens:
    """A tokenizer that only knows how many tokens there are."""

    def __init__(self, length: int) -> None:
        self.model_max_length = length

    def __call__(self, prompts: list[str], **unused: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.zeros(len(prompts), self.model_max_length, dtype=torch.long))


class _WeightlessNetworks(Networks):
    """Extractors whose weights are replaced by fake tensors after they were loaded."""

    def get(self, guidance: GuidanceType, device: torch.device) -> MapNetwork:
        source = self.config.source_of(guidance)
        key = (None if is_tiny(source) else guidance.load, source)  # types may share one
        if key not in self._loaded:
            with unset_fake_temporarily():
                network = load_network(guidance, source)
            cast(network, getattr(torch, self.config.dtype))
            self._loaded[key] = network
        return self._loaded[key]


def cast(module: nn.Module, dtype: torch.dtype, frozen_only: bool = False) -> None:
    """Replace parameters and floating-point buffers by fake ones of a dtype, which torch's own `to` refuses to do."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            if not (frozen_only and value.requires_grad):
                fake = torch.empty_strided(value.shape, value.stride(), dtype=dtype)
                part._parameters[name] = nn.Parameter(fake, value.requires_grad)
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point() and not frozen_only:
                part._buffers[name] = torch.empty_strided(buffer.shape, buffer.stride(), dtype=dtype)


def _read_prior(folder: Path, source: str) -> Prior:
    import diffusers

    try:
        vae = read_config(folder / "vae" / "config.json")
        denoiser = read_config(folder / denoiser_folder(folder) / "config.json")
        name = denoiser_class(denoiser)
        return Prior(
            vae=getattr(diffusers, autoencoder_class(vae)).from_config(vae),
            unet=getattr(diffusers, name).from_config(denoiser),
            text_encoder=_read_text_encoder(folder),
            scheduler=getattr(diffusers, DENOISERS[name]).from_pretrained(folder, subfolder="scheduler"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MegaSRError(f"prior {source!r} in {folder}: its configuration cannot be read: {error}") from error


def _read_text_encoder(folder: Path) -> TextEncoder:
    config = read_config(folder / "text_encoder" / "config.json")
    if json.loads((folder / "model_index.json").read_text())["text_encoder"][0] == "open_clip":
        sizes = {k: v for k, v in config.items() if not k.startswith("_")}
        return OpenClipTextEncoder(**sizes, folder=folder / "text_encoder")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def read(model: Any, part: str) -> tuple[nn.Module, Tokens]:
        text = CLIPTextConfig(**read_config(folder / part / "config.json"))
        return model(text), Tokens(text.max_position_embeddings)

    if (folder / "transformer").is_dir():
        clips = [read(CLIPTextModelWithProjection, part) for part in ("text_encoder", "text_encoder_2")]
        return _read_sd3_text_encoder(folder, clips)
    if is_sdxl(folder):
        clips = [read(CLIPTextModel, "text_encoder"), read(CLIPTextModelWithProjection, "text_encoder_2")]
        return SDXLTextEncoder(clips, read_zeros_for_empty(folder))
    return TransformersTextEncoder(*read(CLIPTextModel, "text_encoder"))


def _read_sd3_text_encoder(folder: Path, clips: list[tuple[nn.Module, Tokens]]) -> TextEncoder:
    from transformers import T5Config, T5EncoderModel

    t5, width = None, read_config(folder / "transformer" / "config.json")["joint_attention_dim"]
    if (folder / "text_encoder_3").is_dir():
        config = T5Config(**read_config(folder / "text_encoder_3" / "config.json"))
        t5 = T5EncoderModel(config), Tokens(SD3TextEncoder.t5_length)
    return SD3TextEncoder(clips, t5, width)
