"""Training of the embedded CLIP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.pretraining.module import PretrainingModule, text_of
from megasr.rng import numpy_generator
from megasr.semantics.clip import (
    build_clip,
    cut_merges,
    encode_images,
    encode_patches,
    encode_texts,
    load_open_clip,
    save_clip,
)

SEPARATOR = ", "


def spans(tag: str) -> list[str]:
    """All runs of words of a tag: of "red brick wall" also "red", "brick", "brick wall", ..."""
    words = tag.split()
    return [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]


def truth(texts: Sequence[str], tags: Sequence[str]) -> torch.Tensor:
    """(B, T) float32: 1 where every phrase of text t is a run of words of one of the tags of image b."""
    known = [{span for tag in image.split(SEPARATOR) for span in spans(tag)} for image in tags]
    phrases = [set(text.split(SEPARATOR)) for text in texts]
    return torch.tensor([[float(text <= spans_of_image) for text in phrases] for spans_of_image in known])


def draw_phrases(tags: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """At most `count` runs of words of the tags of a batch."""
    every = sorted({span for image in tags for tag in image.split(SEPARATOR) for span in spans(tag)})
    return [every[int(number)] for number in rng.permutation(len(every))[:count]]


class ClipModule(PretrainingModule):
    """Train an open_clip model with the sigmoid loss (SigLIP, 2303.15343), every pair of image and text labelled.

    Args:
        words: each of them becomes one token.
        width: of the vision tower, whose patch tokens are an adapter's image tokens.
        layers: of the vision tower.
        patch_size: of the vision tower, in pixels of image_size.
        image_size: what images are resized to.
        embed_dim: of the common space of images and texts.
        text_width: of the text tower, which is the prior's cross-attention width.
        text_layers: of the text tower.
        context_length: tokens of a text.
        merges: most frequent merges of open_clip's vocabulary that are kept besides `words`.
        init: folder of a CLIP of the same sizes to start from; None starts from random weights.
        lock_text: freeze the text tower (all but its projection), so that priors trained on it stay valid.
        patch_weight: weight of the same loss between patch tokens and the tags of patches, where the data have them.
        phrases: runs of words of the batch's tags, each of which is compared with every image.
        settings: see PretrainingModule.
    """

    def __init__(
        self,
        words: Sequence[str] = (),
        width: int = 128,
        layers: int = 4,
        patch_size: int = 16,
        image_size: int = 128,
        embed_dim: int = 64,
        text_width: int = 64,
        text_layers: int = 3,
        context_length: int = 32,
        merges: int = 2000,
        init: str | None = None,
        lock_text: bool = False,
        patch_weight: float = 1.0,
        phrases: int = 160,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.save_hyperparameters()
        vision = {"image_size": image_size, "layers": layers, "width": width, "head_width": 32}
        text = {"context_length": context_length, "width": text_width, "heads": text_width // 32, "layers": text_layers}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.clip = build_clip(embed_dim, vision | {"patch_size": patch_size}, text, cut_merges(words, merges))
        self.phrases, self.patch_weight = phrases, patch_weight
        if init is not None:
            self.clip.load_state_dict(load_open_clip(init).state_dict())
        if lock_text:
            for name, parameter in self.clip.named_parameters():
                parameter.requires_grad_(name.startswith(("visual.", "logit_")) or name == "text_projection")

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """Sigmoid loss over all pairs of the batch's images with its phrases and with every image's whole text."""
        tags = text_of(batch)
        rng = numpy_generator(self.seed, "phrases", self.global_step, self.global_rank)
        texts = [*draw_phrases(tags, self.phrases, rng), *dict.fromkeys(tags)]
        images, patches = encode_patches(self.clip, batch["hq"])
        text = encode_texts(self.clip, texts).T * self.clip.logit_scale.exp()
        loss = self._sigmoid_loss("image", images @ text, truth(texts, tags))
        if "patch_tags" in batch and self.patch_weight:
            shown = [tag for image in batch["patch_tags"] for tag in image]
            if len(shown) != patches.shape[0] * patches.shape[1]:
                raise UsageError(
                    f"data.patches gives {len(shown) // len(tags)} tags per image, the vision tower has "
                    f"{patches.shape[1]} patches: set it to image_size / patch_size"
                )
            known = torch.tensor([bool(tag) for tag in shown])
            names = {tag: row for row, tag in enumerate(dict.fromkeys(shown))}
            rows = torch.tensor([names[tag] for tag in shown])[known]
            logits = patches.flatten(0, 1)[known.to(self.device)] @ text
            loss = loss + self.patch_weight * self._sigmoid_loss("patch", logits, truth(texts, list(names))[rows])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _sigmoid_loss(self, name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, labels = logits + self.clip.logit_bias, labels.to(self.device)
        right = ((logits > 0) == (labels > 0)).float()
        self.log(f"train/{name}_recall", right[labels > 0].mean(), prog_bar=True)
        self.log(f"train/{name}_specificity", right[labels == 0].mean(), prog_bar=True)
        return -F.logsigmoid(logits * (2 * labels - 1)).mean()

    @torch.no_grad()
    def validation_step(self, batch: SRBatch, batch_index: int) -> None:
        """Recall and specificity of the batch's single tags, by the sign of the logit."""
        tags = text_of(batch)
        texts = sorted({tag for image in tags for tag in image.split(SEPARATOR)})
        labels = truth(texts, tags).to(self.device) > 0
        right = ((self._logits(batch["hq"], texts) > 0) == labels).float()
        self.log("val/recall", right[labels].mean(), prog_bar=True, batch_size=len(tags), sync_dist=True)
        self.log("val/specificity", right[~labels].mean(), prog_bar=True, batch_size=len(tags), sync_dist=True)

    def _logits(self, images: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        similarity = encode_images(self.clip, images) @ encode_texts(self.clip, texts).T
        return similarity * self.clip.logit_scale.exp() + self.clip.logit_bias

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Clamp the logit scale as CLIP does."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=math.log(100))

    def export(self, folder: Path) -> None:
        """Write a folder of open_clip's local-dir format."""
        save_clip(self.clip, folder)
