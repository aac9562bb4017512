"""What memory is planned for: a recipe, built without its weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from megasr.batch import SRBatch
from megasr.configs import read_config
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extractors import MapNetwork
from megasr.guidance.registry import GuidanceType
from megasr.guidance.sources import ExtractorConfig, Networks, is_tiny
from megasr.guidance.tiny import CONFIG, FOLDERS, build_tiny
from megasr.networks.parameters import build_sd21
from megasr.prior import Prior, autoencoder_class
from megasr.semantics.clip import CONFIG as CLIP_CONFIG
from megasr.semantics.clip import VisionConfig, VisionEncoder, find_clip
from megasr.semantics.taggers import GivenTagger, Tagger
from megasr.semantics.tags import TaggerConfig
from megasr.semantics.text import OpenClipTextEncoder, TextEncoder, TransformersTextEncoder
from megasr.training.checkpoint import typed_arguments
from megasr.training.module import FrozenParts, MegaSRModule
from megasr.weights.local import find_prior

Strategy = Literal["single", "ddp", "fsdp2"]
_TOKENS = 256  # image tokens that come with the data: ViT-H-14's
# Options of the module that the step itself need not know: they are arithmetic, or done by `cast`.
_NOT_PASSED = ("frozen_dtype", "shard_frozen", "init", "compile")


@dataclass(frozen=True)
class TrainingSetup:
    """What a recipe says about memory.

    Attributes:
        model: arguments of MegaSRModule as plain data.
        batch_size: samples per device and micro-batch.
        crop_size_px: height and width of hq.
        devices: N.
        strategy: how the devices share the work.
        bucket_view: DDP's gradients live in its buckets.
        precision: Lightning's.
        accumulation: micro-batches per optimizer step.
        clips: the norm of the gradients is clipped.
        ema: the trained weights are averaged.
        on_gpu: count as CUDA does it (see StepSettings).
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
        """In which frozen weights are held."""
        return getattr(torch, str(self.model.get("frozen_dtype") or "float32"))

    @property
    def eight_bit(self) -> bool:
        """The optimizer's moments take a byte each."""
        return (self.model.get("optimizer") or {}).get("state_bits") == 8

    def with_model(self, path: str, value: object) -> TrainingSetup:
        """The same with another value of a dotted key of the model."""
        section, _, name = path.rpartition(".")
        changes = {section: {**(self.model.get(section) or {}), name: value}} if section else {name: value}
        return replace(self, model={**self.model, **changes})


def build_batch(setup: TrainingSetup, scale_factor: int, module: MegaSRModule) -> SRBatch:
    """A batch of zeros with everything that the data bring."""
    size, side, small = setup.batch_size, setup.crop_size_px, setup.crop_size_px // scale_factor
    dtype = torch.bfloat16 if setup.precision == "bf16-true" else torch.float32
    keys = [f"image-{i}" for i in range(size)]
    batch = SRBatch(
        keys=keys,
        hq=torch.zeros(size, 3, side, side, dtype=dtype),
        lq=torch.zeros(size, 3, small, small, dtype=dtype),
        tags=list(keys),  # distinct, as equal prompts are embedded once
        text_dropped=[False] * size,  # type: ignore[typeddict-item]
    )
    if setup.brings_maps:
        batch["maps"] = {
            g.name: torch.zeros(size, g.channels, side, side, dtype=dtype) for g in module.network.guidance
        }
    if module.vision is None:
        batch["image_tokens"] = torch.zeros(size, _TOKENS, module.adapter.image_width, dtype=dtype)
        batch["representation"] = torch.zeros(size, _TOKENS, module.adapter.representation_width, dtype=dtype)
    return batch


def module_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data -> arguments of MegaSRModule, without what a plan does by itself or must not do."""
    optimizer = {**(model.get("optimizer") or {}), "decay_share": 0.0}  # a decay asks the trainer for its steps
    optimizer.pop("state_bits", None)
    passed = {name: value for name, value in model.items() if name not in _NOT_PASSED}
    return typed_arguments(MegaSRModule, passed | {"optimizer": optimizer})


_CONTEXT_LENGTH = 77  # of CLIP (2103.00020)
_DEFAULT_TOWER = "ViT-H-14"


@contextmanager
def without_bytes() -> Iterator[None]:
    """Tensors that are made inside have sizes and no bytes, and nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")
        yield


def build_weightless(model: Mapping[str, Any]) -> tuple[MegaSRModule, WeightlessParts]:
    """A module without weights, inside `without_bytes`, and its parts, which have noted what is not as it says.

    Args:
        model: arguments of MegaSRModule as plain data.
    """

    class WeightlessModule(MegaSRModule):
        parts = WeightlessParts()

    return WeightlessModule(**module_arguments(model)), WeightlessModule.parts


class WeightlessPrior(Prior):
    """A prior whose parameters hold no values."""

    def fingerprint(self) -> str:
        """There is nothing to identify."""
        return "no weights"


class WeightlessParts(FrozenParts):
    """Parts without weights.

    Attributes:
        notes: what was counted as something else, or not at all, one sentence each.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """Remember what the reader of a plan must know, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def prior(self, source: str) -> Prior:
        """The prior as its folder's configuration says; SD 2.1-base needs no folder.

        Raises:
            MegaSRError: it is not on this machine, or its configuration cannot be read.
        """
        try:
            folder = find_prior(source)
        except MegaSRError:
            if source != "sd21-base":
                raise
            built = build_sd21()
            built.text_encoder.tokenizer = Tokens(_CONTEXT_LENGTH)
        else:
            built = _read_prior(folder, source)
        return WeightlessPrior(built.vae, built.unet, built.text_encoder, built.scheduler).freeze()  # type: ignore[return-value]

    def vision(self, config: VisionConfig | None) -> VisionEncoder | None:
        """The tower of the folder, or of open_clip's name; ViT-H-14 stands for a folder that is not here."""
        return None if config is None else _Tower(self._clip(config.model))

    def tagger(self, config: TaggerConfig | None) -> Tagger | None:
        """Tags come with the data; the memory of a tagger is not counted."""
        if config is None:
            return None
        if config.kind in ("clip", "ram"):
            self.note(f"model.tagger {config.kind}: its weights and activations are not counted")
        return GivenTagger()

    def networks(self, config: ExtractorConfig | None) -> Networks:
        """Extractors without weights."""
        return _WeightlessNetworks(config, self)

    def _clip(self, name: str) -> nn.Module:
        import open_clip

        config = _read_json(find_clip_or_none(name), CLIP_CONFIG)
        content = config["model_cfg"] if config is not None else open_clip.get_model_config(name)
        if content is None:
            self.note(f"model.vision {name} is not on this machine: counted as open_clip's {_DEFAULT_TOWER}")
            content = open_clip.get_model_config(_DEFAULT_TOWER)
        sizes = {key: content[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
        return open_clip.CLIP(**sizes).visual


def find_clip_or_none(name: str) -> Path | None:
    """The folder of a CLIP, None when it is not on this machine."""
    try:
        return find_clip(name)
    except MegaSRError:
        return None


class _Tower(VisionEncoder):
    def __init__(self, visual: nn.Module) -> None:
        nn.Module.__init__(self)
        self.visual = visual.requires_grad_(False).eval()


class Tokens:
    """A tokenizer that knows how many tokens there are."""

    def __init__(self, length: int) -> None:
        self.model_max_length = length

    def __call__(self, prompts: list[str], **unused: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.zeros(len(prompts), self.model_max_length, dtype=torch.long))


class _WeightlessNetworks(Networks):
    def __init__(self, config: ExtractorConfig | None, parts: WeightlessParts) -> None:
        super().__init__(config)
        self.parts = parts

    def get(self, guidance: GuidanceType, device: torch.device) -> MapNetwork:
        source = self.config.source_of(guidance)
        loader = _builder(guidance, source, self.parts)
        if (loader, source) not in self._loaded:
            network = loader().freeze()
            cast(network, getattr(torch, self.config.dtype))
            self._loaded[loader, source] = network
        return self._loaded[loader, source]


def cast(module: nn.Module, dtype: torch.dtype, frozen_only: bool = False) -> None:
    """Give parameters and floating-point buffers another dtype; torch's own `to` refuses fake parameters."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            if not (frozen_only and value.requires_grad):
                part._parameters[name] = nn.Parameter(value.detach().to(dtype), value.requires_grad)
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point() and not frozen_only:
                part._buffers[name] = buffer.to(dtype)


def _builder(guidance: GuidanceType, source: str, parts: WeightlessParts) -> Callable[[], MapNetwork]:
    """How to build the network of a type; equal for types that share one."""
    from megasr.training.public_networks import BUILDERS

    if is_tiny(source):
        return _build_tiny_of(source)
    builders = BUILDERS.get(guidance.base)
    if builders is None:
        raise UsageError(f"guidance {guidance.name}: the size of its network is not known, so no memory can be planned")
    standing = source if source in builders else next(iter(builders))
    if standing != source:
        parts.note(f"model.extractors {guidance.base} from {source}: counted as {standing}")
    return builders[standing]


@cache
def _build_tiny_of(source: str) -> Callable[[], MapNetwork]:
    content = json.loads((FOLDERS.get(source, Path(source)) / CONFIG).read_text())
    return lambda: build_tiny(**content)


def _read_prior(folder: Path, source: str) -> Prior:
    import diffusers

    try:
        vae = read_config(folder / "vae" / "config.json")
        unet = read_config(folder / "unet" / "config.json")
        return Prior(
            vae=getattr(diffusers, autoencoder_class(vae)).from_config(vae),
            unet=diffusers.UNet2DConditionModel.from_config(unet),
            text_encoder=_read_text_encoder(folder),
            scheduler=diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MegaSRError(f"prior {source!r} in {folder}: its configuration cannot be read: {error}") from error


def _read_text_encoder(folder: Path) -> TextEncoder:
    library, _ = json.loads((folder / "model_index.json").read_text())["text_encoder"]
    if library == "open_clip":
        config = read_config(folder / "text_encoder" / "config.json")
        sizes = {k: v for k, v in config.items() if not k.startswith("_")}
        return OpenClipTextEncoder(**sizes, folder=folder / "text_encoder")
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**read_config(folder / "text_encoder" / "config.json"))
    return TransformersTextEncoder(CLIPTextModel(config), Tokens(config.max_position_embeddings))


def _read_json(folder: Path | None, name: str) -> dict[str, Any] | None:
    return json.loads((folder / name).read_text()) if folder is not None and (folder / name).is_file() else None
