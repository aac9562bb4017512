"""Taggers of lq: zero-shot CLIP, and RAM with DAPE's update (2306.03514)."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megasr.batch import check_image
from megasr.errors import MegaSRError, UsageError
from megasr.files import open_whole, read_saved
from megasr.semantics.clip import encode_images, encode_texts, tokens_and_embedding

SEPARATOR = ", "
_TEXTS_AT_ONCE = 64


class Tagger(nn.Module):
    """Images, and the tags that the data bring -> tag lists."""

    def forward(self, images: torch.Tensor, given: Sequence[str] | None = None) -> list[str]:
        """Tag lists of a batch.

        Args:
            images: lq, (B, 3, H, W) in [0, 1].
            given: B tag lists that come with the data, "" for none; None when there are none at all.

        Raises:
            UsageError: the images or the number of tag lists are not as they should be.
        """
        raise NotImplementedError


def _given_tags(images: torch.Tensor, given: Sequence[str] | None) -> list[str]:
    """The tag list of every image, "" where the data bring none."""
    check_image(images, "tagger image")
    if given is None:
        return [""] * len(images)
    if isinstance(given, str) or len(given) != len(images):
        raise UsageError(f"tagger: {len(given)} given tag lists for {len(images)} images")
    return list(given)


class GivenTagger(Tagger):
    """The tags that come with the data.

    Args:
        required: an image without tags is an error.
    """

    def __init__(self, required: bool = False) -> None:
        super().__init__()
        self.required = required

    def forward(self, images: torch.Tensor, given: Sequence[str] | None = None) -> list[str]:
        tags = _given_tags(images, given)
        bare = [place for place, text in enumerate(tags) if not text.strip()]
        if self.required and bare:
            raise UsageError(
                f"tagger.kind scene takes the exact tags of rendered scenes, but image {bare[0]} of {len(tags)} comes "
                "without: use scenes, or another tagger.kind"
            )
        return tags


class LabelTagger(Tagger):
    """Those of fixed labels that are probable, the most probable first.

    Args:
        labels: T words or phrases.
        thresholds: (T,) probabilities, or one for all, from which on a label is a tag.
        max_tags: at most so many.
        keep_given: images that come with tags keep them.
    """

    def __init__(
        self, labels: Sequence[str], thresholds: torch.Tensor | float, max_tags: int, keep_given: bool
    ) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.max_tags, self.keep_given = max_tags, keep_given
        # No buffer: it is compared on the CPU, and a half-precision module must not round it.
        self._thresholds = torch.as_tensor(thresholds, dtype=torch.float32).expand(len(self.labels))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> tokens of the image encoder (B, N, D), with gradients."""
        return self.analyse(images)[0]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, T), one per label, with gradients."""
        return self.analyse(images)[1]

    def analyse(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`features` and `logits` from one pass through the encoder."""
        raise NotImplementedError

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, T) logits -> what is compared with the thresholds, in [0, 1] and in the same order."""
        return torch.sigmoid(logits)

    @torch.no_grad()
    def forward(self, images: torch.Tensor, given: Sequence[str] | None = None) -> list[str]:
        tags = _given_tags(images, given)
        places = [place for place, text in enumerate(tags) if not (self.keep_given and text.strip())]
        if places:
            for place, text in zip(places, self.choose(self.logits(images[places])), strict=True):
                tags[place] = text
        return tags

    def choose(self, logits: torch.Tensor) -> list[str]:
        """Tag lists of (B, T) logits; of equally probable labels the earlier one goes first."""
        logits = logits.detach().float().cpu()
        probable = self.probabilities(logits) >= self._thresholds
        ranked = logits.sort(dim=1, descending=True, stable=True).indices
        chosen = (
            [i for i in row.tolist() if known[i]][: self.max_tags] for row, known in zip(ranked, probable, strict=True)
        )
        return [SEPARATOR.join(self.labels[i] for i in row) for row in chosen]

    def train(self, mode: bool = True) -> LabelTagger:
        """A frozen tagger stays in evaluation mode whatever Lightning asks for."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))


class ClipTagger(LabelTagger):
    """A CLIP that compares the image with every phrase of a vocabulary; the phrases are embedded once.

    Args:
        clip: open_clip's model with its `tokenizer`; it is frozen.
        labels: the vocabulary.
        template: what the text tower reads, {} stands for the phrase; "" chooses (see TaggerConfig).
        threshold: see TaggerConfig.
        max_tags: see LabelTagger.
        keep_given: see LabelTagger.
    """

    def __init__(
        self, clip: Any, labels: Sequence[str], template: str, threshold: float, max_tags: int, keep_given: bool
    ) -> None:
        super().__init__(labels, threshold, max_tags, keep_given)
        self.clip = clip.requires_grad_(False).eval()
        self.is_sigmoid = getattr(clip, "logit_bias", None) is not None
        template = template or ("{}" if self.is_sigmoid else "a photo of {}")
        texts = [template.replace("{}", label) for label in self.labels]
        with torch.no_grad():
            starts = range(0, len(texts), _TEXTS_AT_ONCE)
            embedded = torch.cat([encode_texts(clip, texts[i : i + _TEXTS_AT_ONCE]) for i in starts])
        self.register_buffer("embedded", embedded, persistent=False)  # (T, E) of unit length

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return self._compare(encode_images(self.clip, images.to(self.embedded)))

    def analyse(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch tokens of the vision transformer as an adapter reads them (B, N, D), and logits."""
        tokens, whole = tokens_and_embedding(self.clip, images.to(self.embedded))
        return tokens, self._compare(whole)

    def _compare(self, whole: torch.Tensor) -> torch.Tensor:
        logits = whole @ self.embedded.T * self.clip.logit_scale.exp()
        return logits + self.clip.logit_bias if self.is_sigmoid else logits

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        # softmax(l) / max softmax(l): a CLIP that was trained to compare texts gives no probability of a single one.
        return torch.sigmoid(logits) if self.is_sigmoid else (logits - logits.amax(1, keepdim=True)).exp()


class RamTagger(LabelTagger):
    """RAM with its list of labels; `features` is the representation that SeeSR's cross-attention reads, (B, 145, 512).

    Args:
        ram: megasr.semantics.taggers.Ram.
        labels: its labels, in their order.
        thresholds: see LabelTagger.
        max_tags: see LabelTagger.
        keep_given: see LabelTagger.
    """

    def __init__(
        self, ram: Any, labels: Sequence[str], thresholds: torch.Tensor | float, max_tags: int, keep_given: bool
    ) -> None:
        super().__init__(labels, thresholds, max_tags, keep_given)
        self.ram = ram

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.ram.features(images.to(self.ram.label_embed))

    def analyse(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(images)
        return features, self.ram.logits(features)


State = dict[str, torch.Tensor]

_HEADS = 4  # of the tagging head's attention; weights do not tell
_ENCODER, _HEAD = "visual_encoder.", "tagging_head.encoder.layer."


class TagLayer(nn.Module):
    """BERT's layer without self-attention (Query2Label, 2107.10834): labels attend to the image, then an MLP.

    Args:
        width: of the labels.
        context_width: of the image tokens.
        hidden: of the MLP.
    """

    def __init__(self, width: int, context_width: int, hidden: int) -> None:
        super().__init__()
        widths = {"query": width, "key": context_width, "value": context_width}
        attention = nn.ModuleDict({name: nn.Linear(wide, width) for name, wide in widths.items()})
        self.crossattention = nn.ModuleDict({"self": attention, "output": _residual(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = _residual(hidden, width)

    def forward(self, labels: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Labels (B, T, W) that attend to image tokens (B, N, C) -> (B, T, W)."""
        attention, output = self.crossattention["self"], self.crossattention["output"]
        parts = (attention["query"](labels), attention["key"](image), attention["value"](image))
        query, key, value = (part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        labels = output["LayerNorm"](output["dense"](attended) + labels)
        hidden = F.gelu(self.intermediate["dense"](labels))
        return self.output["LayerNorm"](self.output["dense"](hidden) + labels)


def _residual(inputs: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})


class Ram(nn.Module):
    """RAM without its caption towers; parameters are called as in its checkpoint, but for timm's Swin.

    Args:
        state: a whole checkpoint in RAM's names; only its shapes are read.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        from timm.models.swin_transformer import SwinTransformer

        super().__init__()
        encoder = swin_sizes(state)
        self.size_px: int = encoder["img_size"]
        self.visual_encoder = SwinTransformer(**encoder, num_classes=0, drop_path_rate=0.0)
        context, encoder_width = state["image_proj.weight"].shape
        count, label_width = state["label_embed"].shape
        width = state["fc.weight"].shape[1]
        self.image_proj = nn.Linear(encoder_width, context)
        self.label_embed = nn.Parameter(torch.zeros(count, label_width))
        self.wordvec_proj = nn.Linear(label_width, width)
        hidden = state[f"{_HEAD}0.intermediate.dense.weight"].shape[0]
        layers = [TagLayer(width, context, hidden) for _ in range(_count(state, _HEAD))]
        self.tagging_head = nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList(layers)})})
        self.fc = nn.Linear(width, 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> the representation (B, 1 + N, 512): the mean token, then N patch tokens."""
        size = (self.size_px, self.size_px)
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values).to(images).view(3, 1, 1) for values in _IMAGENET)
        tokens = self.visual_encoder.forward_features((images - mean) / std).flatten(1, 2)
        return self.image_proj(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Representation (B, 1 + N, 512) -> (B, T), one logit per label."""
        labels = F.relu(self.wordvec_proj(self.label_embed)).expand(len(features), -1, -1)
        for layer in self.tagging_head["encoder"]["layer"]:
            labels = layer(labels, features)
        return self.fc(labels).squeeze(-1)


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation


def _count(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbers follow a prefix among the names: layers of a stage, stages of an encoder."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def swin_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of timm's SwinTransformer for RAM's image encoder.

    The last stage of RAM's encoders is one window, so the window tells the size of the image (384 px for Swin-L).
    """
    stages = range(_count(state, f"{_ENCODER}layers."))
    tables = [state[f"{_ENCODER}layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in stages]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    embedding = state[f"{_ENCODER}patch_embed.proj.weight"]
    return {
        "img_size": embedding.shape[-1] * window * 2 ** (len(stages) - 1),
        "patch_size": embedding.shape[-1],
        "window_size": window,
        "embed_dim": embedding.shape[0],
        "depths": tuple(_count(state, f"{_ENCODER}layers.{i}.blocks.") for i in stages),
        "num_heads": tuple(table.shape[1] for table in tables),
    }


def _public_name(name: str) -> str:
    """A parameter's name in the checkpoint: timm's stages merge patches when they begin, the original's as they end."""
    return re.sub(r"^(visual_encoder\.layers\.)(\d+)(\.downsample\.)", lambda m: f"{m[1]}{int(m[2]) - 1}{m[3]}", name)


def load_ram(weights: Path, lora: Path | None = None) -> Ram:
    """RAM in float32, in evaluation mode and frozen.

    Args:
        weights: RAM's checkpoint.
        lora: a low-rank update of it, in the layout of SeeSR's DAPE.pth; it is added to the weights.

    Raises:
        MegaSRError: a file is missing, cannot be read or is not what it should be.
    """
    state = {name.replace("vision_multi.", "tagging_head."): value for name, value in _read(weights, "RAM").items()}
    if "reweight_scale" in state:
        raise MegaSRError(f"RAM weights {weights}: this is RAM++, another model: give RAM's checkpoint")
    if lora is not None:
        _merge_lora(state, _read(lora, "RAM LoRA"), f"RAM LoRA {lora}")
    try:
        with torch.random.fork_rng(devices=[]):
            ram = Ram(state)
        ram.load_state_dict({name: state[_public_name(name)].float() for name in ram.state_dict()})
    except (KeyError, RuntimeError, ValueError, IndexError, AssertionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise MegaSRError(f"RAM weights {weights}: not a checkpoint of RAM with a Swin encoder: {what}") from error
    return ram.requires_grad_(False).eval()


def save_ram(ram: Ram, file: Path) -> None:
    """Write a checkpoint in RAM's names, without caption towers."""
    state = {_public_name(name): value.detach().float().cpu() for name, value in ram.state_dict().items()}
    with open_whole(file) as stream:
        torch.save({"model": state}, stream)


def _read(file: Path, what: str) -> State:
    """The tensors of a checkpoint, which may be wrapped in `model`."""
    if not file.is_file():
        raise MegaSRError(f"{what} weights {file}: there is no such file")
    try:
        # Mapped, as the public file is twelve times as large as what is read of it; old formats cannot be.
        content = read_saved(file, mmap=zipfile.is_zipfile(file))
    except OSError as error:
        raise MegaSRError(f"{what} weights {file} cannot be read as plain tensors: {error}") from error
    content = content.get("model", content) if isinstance(content, dict) else {}
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _merge_lora(state: State, lora: State, what: str) -> None:
    """Add B A / r to every weight that the update names (LoRA, 2106.09685, with alpha 1 as SeeSR trains it).

    DAPE tunes query and value of Swin, query and key of the tagging head; the caption towers' part of the file was
    never trained. A fused query-key-value has one pair for the query and one for the value, stacked, and none for the
    key.
    """
    stems = {name.rpartition(".")[0] for name in lora if name.startswith((_ENCODER, _HEAD)) and ".lora_" in name}
    tuned = re.compile(rf"{_ENCODER}layers\..*\.attn\.qkv|{_HEAD}.*\.crossattention\.self\.(query|key)")
    expected = {name.removesuffix(".weight") for name in state if tuned.fullmatch(name.removesuffix(".weight"))}
    if stems != expected:
        raise MegaSRError(f"{what}: no update of the RAM that weights name: {min(stems ^ expected)} is not in both")
    for stem in sorted(stems):
        weight = f"{stem}.weight"
        try:
            a, b = lora[f"{stem}.lora_A"].float(), lora[f"{stem}.lora_B"].float()
            if stem.endswith(".qkv"):
                query, value = (up @ down for up, down in zip(b.chunk(2), a.split(b.shape[1]), strict=True))
                delta = torch.cat([query, torch.zeros_like(query), value])
            else:
                delta = b @ a
            state[weight] = state[weight].float() + delta / b.shape[1]
        except (KeyError, RuntimeError, ValueError) as error:
            raise MegaSRError(f"{what}: the update of {weight} does not fit: {error}") from error
