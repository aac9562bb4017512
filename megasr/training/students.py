"""What prior-guided fine-tuning needs of a network, whichever library it is from: representation, outputs, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from megasr.errors import UsageError
from megasr.guidance.network import MapNetwork, Views
from megasr.guidance.networks import load_network
from megasr.guidance.registry import get_guidance
from megasr.semantics.clip import save_clip
from megasr.semantics.taggers import ClipTagger
from megasr.semantics.tags import TaggerConfig, build_tagger
from megasr.training import distillation_losses as losses

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Seen = tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]  # representation, raw outputs
CLIP = "clip"


class Student(nn.Module):
    """A network to tune.

    Attributes:
        network: what is loaded and exported.
        outputs: output name -> its loss against the teacher's.
    """

    network: nn.Module
    outputs: dict[str, Loss]

    @property
    def tuned(self) -> nn.Module:
        """The part of the network that is trained."""
        return self.network

    def look(self, images: torch.Tensor, wants_outputs: bool) -> Seen:
        """(B, 3, H, W) in [0, 1] -> the representation, and the raw outputs when they are wanted."""
        raise NotImplementedError

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is used of the network, by name: maps in [0, 1], tokens, probabilities of tags."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the network in the format that it was loaded from."""
        raise NotImplementedError


class MapStudent(Student):
    """A network that makes guidance maps.

    Args:
        guidance: the guidance type that names the loader.
        source: of the weights.
    """

    def __init__(self, guidance: str, source: str) -> None:
        super().__init__()
        self.network: MapNetwork = load_network(get_guidance(guidance), source)
        depth = losses.relative_depth_loss if self.network.relative_depth else losses.absolute_loss
        known: dict[str, Loss] = {
            "hed": losses.edge_loss, "sketch": losses.edge_loss, "depth": depth,
            "normal": losses.absolute_loss, "segmentation": losses.class_loss,
        }  # fmt: skip
        self.outputs = {name: known[name] for name in self.network.outputs}

    def look(self, images: torch.Tensor, wants_outputs: bool) -> Seen:
        representation = self.network.encode(Views(images))
        return representation, self.network.decode(representation, self.network.outputs) if wants_outputs else {}

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.network(Views(images), self.network.gives)

    def export(self, folder: Path) -> None:
        self.network.export(folder)


class ClipStudent(Student):
    """A CLIP's vision tower: its patch tokens are the image tokens, its zero-shot head is the tagger.

    Args:
        source: `tiny` or a folder in open_clip's local-dir format.
        vocabulary: of the zero-shot head; see megasr.semantics.phrases.
    """

    def __init__(self, source: str, vocabulary: str) -> None:
        super().__init__()
        tagger = build_tagger(TaggerConfig("clip", model=source, vocabulary=vocabulary))
        assert isinstance(tagger, ClipTagger)
        self.tagger, self.network = tagger, tagger.clip
        # A CLIP that was trained to compare texts cannot say how true one is: its tags are a distribution.
        self.outputs = {"tags": losses.tag_loss if tagger.is_sigmoid else losses.class_loss}

    @property
    def tuned(self) -> nn.Module:
        return self.tagger.clip.visual

    def look(self, images: torch.Tensor, wants_outputs: bool) -> Seen:
        tokens, logits = self.tagger.analyse(images)
        return (tokens,), {"tags": logits} if wants_outputs else {}

    def answers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens, logits = self.tagger.analyse(images)
        return {"tokens": tokens, "tags": self.tagger.probabilities(logits)}

    def export(self, folder: Path) -> None:
        save_clip(self.network, folder)


def answer_error(name: str, found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """How wrong an answer is, (B,).

    The share of pixels of another class; the squared error of tokens in units of their own square; of edges the
    Kullback-Leibler divergence from the right probabilities in nats per pixel (a mean absolute error would praise a map
    without edges, as most pixels have none); else the mean absolute error.
    """
    if name in ("hed", "sketch"):
        return losses.edge_divergence(found, right).flatten(1).mean(1)
    if name == "segmentation":
        return (found != right).any(1).float().mean((1, 2))
    if name == "tokens":
        return (found - right).square().flatten(1).sum(1) / right.square().flatten(1).sum(1)
    return (found - right).abs().flatten(1).mean(1)


def load_student(network: str, source: str, vocabulary: str) -> Student:
    """`clip`, or a guidance type, with the weights of a source.

    Raises:
        UsageError: a vocabulary without a tagger.
        MegaSRError: the weights are missing or damaged.
    """
    if network == CLIP:
        return ClipStudent(source, vocabulary or "tiny")
    if vocabulary:
        raise UsageError(f"model.vocabulary is for the network clip; {network} has no words")
    return MapStudent(network, source)
