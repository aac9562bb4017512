"""CLIP: vocabularies, checkpoints in open_clip's and transformers' formats, and the tower of the image tokens."""

from __future__ import annotations

import functools
import gzip
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megasr.configs import read_config
from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.files import read_safetensors, read_saved
from megasr.weights import MANIFEST, require

WHOLE = 48894  # merges of open_clip's whole vocabulary
_MOST_BYTES = 2**23  # of unpacked merges; the whole vocabulary has 3 MiB
FILE = "merges.txt.gz"  # beside the weights of a model whose vocabulary is cut


def cut_merges(words: Iterable[str], first: int) -> list[str]:
    """The `first` most frequent merges and those that make each of `words` one token, in open_clip's order."""
    from open_clip.tokenizer import SimpleTokenizer

    whole = SimpleTokenizer()
    merges = list(whole.bpe_ranks)
    kept = set(merges[:first])
    for word in words:
        kept |= set(_merges_of(word.lower(), whole.bpe_ranks))
    return [" ".join(merge) for merge in merges if merge in kept]


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding applies to a word, in the order of application."""
    parts, applied = [*word[:-1], word[-1] + "</w>"], []
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        applied.append(best)
        merged: list[str] = []
        while parts:
            if tuple(parts[:2]) == best:
                merged, parts = [*merged, "".join(best)], parts[2:]
            else:
                merged, parts = [*merged, parts[0]], parts[1:]
        parts = merged
    return applied


def make_tokenizer(merges: Iterable[str], context_length: int) -> Any:
    """open_clip's tokenizer with these merges."""
    with tempfile.TemporaryDirectory() as folder:  # it reads them from a file only
        _write(merges, Path(folder))
        return load_tokenizer(Path(folder), context_length)


@functools.cache  # 49 thousand merges take as long to read as a small network to build
def _whole_tokenizer(context_length: int) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


def load_tokenizer(folder: Path | None, context_length: int) -> Any:
    """open_clip's tokenizer with the merges in a folder, or with all of them when there are none.

    Raises:
        OSError, EOFError, zlib.error, ValueError: the file of merges is damaged or far too large.
    """
    from open_clip.tokenizer import SimpleTokenizer

    if folder is None or not (folder / FILE).is_file():
        return _whole_tokenizer(context_length)
    with gzip.open(folder / FILE) as file:
        if len(file.read(_MOST_BYTES + 1)) > _MOST_BYTES:
            raise ValueError(f"{folder / FILE} unpacks to more than {_MOST_BYTES} bytes")
    return SimpleTokenizer(str(folder / FILE), context_length=context_length)


def save_merges(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's merges so that load_tokenizer reads them; nothing when it has the whole vocabulary."""
    if len(tokenizer.bpe_ranks) < WHOLE:
        _write((" ".join(merge) for merge in tokenizer.bpe_ranks), folder)


def _write(merges: Iterable[str], folder: Path) -> None:
    # The first line is a header; mtime 0: equal merges are equal files.
    (folder / FILE).write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0))


# The shipped ones: trained on clean images, and the same with its vision tower tuned for degraded ones.
_ASSETS = Path(__file__).parent.parent / "assets"
FOLDERS = {"tiny": _ASSETS / "tiny_clip", "tiny_lq": _ASSETS / "tiny_clip_lq"}
TINY_CLIP = FOLDERS["tiny"]
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # of a tower that is trained here
# CLIP's (2103.00020), for towers that do not carry their own.
_CLIP_PIXELS = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


class Clip(nn.Module):
    """A frozen open_clip model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, E) of unit length."""
        return encode_images(self.model, images)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """N texts -> (N, E) of unit length."""
        return encode_texts(self.model, texts)

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """(B, N) in [0, 1]: how likely each text is true of each image (SigLIP, 2303.15343): they need not sum to 1."""
        similarity = self.encode_images(images) @ self.encode_texts(texts).T
        return torch.sigmoid(similarity * self.model.logit_scale.exp() + self.model.logit_bias)


def build_clip(embed_dim: int, vision: dict[str, Any], text: dict[str, Any], merges: Sequence[str]) -> Any:
    """An open_clip model with random weights whose vocabulary is bytes and `merges`.

    Args:
        embed_dim: E.
        vision: open_clip's vision_cfg.
        text: open_clip's text_cfg without the vocabulary.
        merges: see megasr.semantics.clip.
    """
    tokenizer = make_tokenizer(merges, text["context_length"])
    text = text | {"vocab_size": tokenizer.vocab_size}
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
    # Most pairs of images and texts do not belong together: the bias says so from the start.
    return _build(config | {"init_logit_scale": 2.3, "init_logit_bias": -4.0}, tokenizer, PIXELS)


def _build(config: dict[str, Any], tokenizer: Any, pixels: Mapping[str, Any]) -> Any:
    from open_clip import CLIP

    model = CLIP(**config)
    model.config, model.tokenizer = config, tokenizer
    for name in PIXELS:
        setattr(model.visual, f"image_{name}", tuple(pixels[name]))
    return model


def save_clip(model: Any, folder: Path) -> None:
    """Write open_clip's local-dir format (fp16 safetensors) and the merges of its vocabulary."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_merges(model.tokenizer, folder)
    pixels = {name: list(getattr(model.visual, f"image_{name}")) for name in PIXELS}
    content = {"model_cfg": model.config, "preprocess_cfg": pixels}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    save_file({k: v.detach().half().contiguous().cpu() for k, v in model.state_dict().items()}, folder / WEIGHTS)


def load_clip(source: str = "tiny") -> Clip:
    """A frozen CLIP in float32.

    Args:
        source: `tiny`, `tiny_lq`, `clip-vit-h14` (megasr weights), or a folder in open_clip's local-dir format with the
            weights in safetensors.

    Raises:
        MegaSRError: it is not on this machine, the folder lacks a file, or its files do not fit together.
    """
    return Clip(load_open_clip(source))


def find_clip(source: str) -> Path:
    """The folder of a CLIP: a shipped one (`tiny`, `tiny_lq`), a weight that is known by its name, or a folder.

    Raises:
        MegaSRError: a known weight is not on this machine.
    """
    return require(source) if source in MANIFEST else FOLDERS.get(source, Path(source))


def load_open_clip(source: str) -> Any:
    """The open_clip model behind load_clip."""
    folder = find_clip(source)
    if not folder.is_dir():
        raise MegaSRError(f"CLIP {source!r}: there is no such folder, seen from {Path.cwd()}")
    absent = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if absent:
        raise MegaSRError(f"CLIP {source!r}: {folder} lacks {', '.join(absent)}")
    try:
        content = read_config(folder / CONFIG)
        config, pixels = content["model_cfg"], _CLIP_PIXELS | content.get("preprocess_cfg", {})
        with torch.random.fork_rng(devices=[]):
            model = _build(config, load_tokenizer(folder, config["text_cfg"]["context_length"]), pixels)
        model.load_state_dict(read_safetensors(folder / WEIGHTS))
    except Exception as error:  # every library has errors of its own for a broken file
        raise MegaSRError(f"CLIP {source!r} in {folder} cannot be read: {error}") from error
    return model


def prepare_images(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> what an open_clip vision tower takes: its size, its mean and standard deviation."""
    size = (visual.image_size,) * 2 if isinstance(visual.image_size, int) else tuple(visual.image_size)
    images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (
        torch.tensor(getattr(visual, f"image_{name}", None) or default).to(images).view(3, 1, 1)
        for name, default in _CLIP_PIXELS.items()
    )
    return (images - mean) / std


def encode_images(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, E) of unit length, with gradients."""
    return model.encode_image(prepare_images(model.visual, images), normalize=True)


def encode_patches(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) in [0, 1] -> images (B, E) and patches (B, N, E) of unit length, of a vision transformer."""
    tokens, embedding = tokens_and_embedding(model, images)
    return embedding, F.normalize(tokens @ model.visual.proj, dim=-1)


def tokens_and_embedding(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 3, H, W) in [0, 1] -> patch tokens (B, N, D) as an adapter reads them, images (B, E) of unit length."""
    outputs = _intermediates(model.visual, images)
    return outputs["image_intermediates"][-1], F.normalize(outputs["image_features"], dim=-1)


def _intermediates(visual: Any, images: torch.Tensor, **more: bool) -> dict[str, Any]:
    """Tokens of the last layer after the final norm, without the class token."""
    return visual.forward_intermediates(
        prepare_images(visual, images), indices=1, normalize_intermediates=True, output_fmt="NLC", **more
    )


def encode_texts(model: Any, texts: Sequence[str]) -> torch.Tensor:
    """N texts -> (N, E) of unit length, with gradients; a text that occurs twice is encoded once."""
    unique = list(dict.fromkeys(texts))
    places = {text: place for place, text in enumerate(unique)}
    tokens = model.tokenizer(unique).to(model.logit_scale.device)
    return model.encode_text(tokens, normalize=True)[[places[text] for text in texts]]


@dataclass(frozen=True)
class VisionConfig:
    """Which OpenCLIP vision tower gives the image tokens.

    Args:
        weights: checkpoint file of an open_clip model (open_clip's format, safetensors or pickle).
        model: open_clip model name (SD 2.x was trained with ViT-H-14's text tower); or, without weights, `tiny` or
            `tiny_lq` (the shipped ones), `clip-vit-h14` (megasr weights) or a folder in open_clip's local-dir format.

    Raises:
        UsageError: a name without weights, or one that brings them with weights.
    """

    weights: str = ""
    model: str = "ViT-H-14"

    def __post_init__(self) -> None:
        check_weights("vision", self.model, self.weights)

    @property
    def brings_weights(self) -> bool:
        """The model is a shipped one, one of the manifest, or a folder."""
        return brings_weights(self.model)

    @property
    def weights_file(self) -> Path:
        """Where the weights are."""
        return find_clip(self.model) / WEIGHTS if self.brings_weights else Path(self.weights)


def brings_weights(model: str) -> bool:
    """Whether a model is a shipped one, one of the manifest, or a folder, and not a name of open_clip's."""
    return model in (*FOLDERS, *MANIFEST) or "/" in model or Path(model).is_dir()


def check_weights(section: str, model: str, weights: str) -> None:
    """Refuse a name of open_clip's without weights, and a model that brings them with others. Raises UsageError."""
    if brings_weights(model) and weights:
        raise UsageError(f"{section}.model {model!r} brings its own weights: leave out {section}.weights")
    if not brings_weights(model) and not weights:
        raise UsageError(f"{section}.weights: name the checkpoint of {model}, or set {section}.model to tiny")


class VisionEncoder(nn.Module):
    """lq_up -> (B, N, E) patch tokens of a frozen OpenCLIP vision transformer.

    Raises:
        UsageError: open_clip does not know the model.
        MegaSRError: the weights are missing or belong to another model.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.visual = load_any(config.model, config.weights).visual.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VisionEncoder:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, E)."""
        return _intermediates(self.visual, image, intermediates_only=True)["image_intermediates"][-1]


def load_any(name: str, weights: str) -> Any:
    """An open_clip model in float32 with its tokenizer: one that brings its weights, or one of open_clip's with a file.

    Raises:
        UsageError: open_clip does not know the model.
        MegaSRError: the weights are missing or belong to another model.
    """
    if brings_weights(name):
        return load_open_clip(name)
    import open_clip

    if name not in open_clip.list_models():
        raise unknown_name("open_clip model", name, [*FOLDERS, *open_clip.list_models()])
    try:
        if Path(weights).is_file() and Path(weights).suffix not in (".safetensors", ".npz", ".npy"):
            read_saved(Path(weights))  # open_clip would pass on torch's advice to read what could run code
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(name, pretrained=weights)
        model.tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise MegaSRError(f"CLIP weights {weights!r} for {name} cannot be loaded: {reason}") from error
    return model.float()
