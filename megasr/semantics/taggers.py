"""The taggers: modules that make tag lists of images. Which there are, and how they are chosen, is in tags.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from megasr.batch import check_image
from megasr.errors import UsageError
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
        ram: megasr.semantics.ram.Ram.
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
