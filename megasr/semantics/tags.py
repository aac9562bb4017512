"""Tags: vocabulary, phrases, and which tagger a run uses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.semantics.clip import check_weights, load_any
from megasr.semantics.taggers import ClipTagger, GivenTagger, RamTagger, Tagger

VOCABULARIES = Path(__file__).parent.parent / "assets" / "vocabularies"


def list_vocabularies() -> list[str]:
    """Names of those that ship with the package."""
    return sorted(file.stem for file in VOCABULARIES.glob("*.txt"))


def load_vocabulary(source: str) -> tuple[str, ...]:
    """The phrases of a vocabulary: `tiny`, `general`, or a file (see read_phrases).

    Raises:
        UsageError: it is neither, or a line cannot be used.
    """
    if source not in list_vocabularies() and not Path(source).is_file():
        raise UsageError(f"vocabulary {source!r} is neither {', '.join(list_vocabularies())} nor a file")
    return read_phrases(VOCABULARIES / f"{source}.txt" if source in list_vocabularies() else Path(source))


def read_phrases(file: Path) -> tuple[str, ...]:
    """One phrase per line in UTF-8; # begins a comment, blank lines are skipped.

    Raises:
        MegaSRError: the file cannot be read.
        UsageError: a phrase occurs twice or holds a comma, which separates tags; or there is none. Names the line.
    """
    lines: dict[str, int] = {}
    phrases = []
    for number, line in enumerate(_read_lines(file), 1):
        phrase = " ".join(line.partition("#")[0].split())
        first = lines.setdefault(phrase.casefold(), number) if phrase else number
        if "," in phrase or first != number:
            problem = "holds a comma: one phrase per line" if "," in phrase else f"is in line {first} already"
            raise UsageError(f"{file}, line {number}: {phrase!r} {problem}")
        phrases += [phrase] if phrase else []
    if not phrases:
        raise UsageError(f"{file}: none of its lines has a phrase")
    return tuple(phrases)


def read_thresholds(file: Path, count: int) -> torch.Tensor:
    """(count,) float32 in [0, 1], one per line.

    Raises:
        MegaSRError: the file cannot be read.
        UsageError: it holds something else, or more or fewer numbers.
    """
    try:
        values = torch.tensor([float(line) for line in _read_lines(file)])
    except ValueError as error:
        raise UsageError(f"{file}: one threshold per line, but {error}") from error
    if len(values) != count or not ((values >= 0) & (values <= 1)).all():
        raise UsageError(f"{file}: {len(values)} lines of thresholds for {count} labels; each must be from 0 to 1")
    return values


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MegaSRError(f"{file} cannot be read: {reason}") from error


# The kinds of tagger that a field has an effect on.
_USED_BY: dict[str, tuple[str, ...]] = {
    "kind": ("given", "scene", "clip", "ram"),
    "model": ("clip",),
    "weights": ("clip", "ram"),
    "lora": ("ram",),
    "vocabulary": ("clip",),
    "template": ("clip",),
    "labels": ("ram",),
    "label_thresholds": ("ram",),
    "threshold": ("clip", "ram"),
    "max_tags": ("clip", "ram"),
    "keep_given": ("clip", "ram"),
}
_RAM_THRESHOLD = 0.68  # of RAM's own code


@dataclass(frozen=True)
class TaggerConfig:
    """Where the tags of an image come from.

    Args:
        kind: `given`: what comes with the data, "" where nothing does; `scene`: the same, but every image must have
            some (the exact tags of rendered scenes); `clip`: phrases of a vocabulary that a CLIP finds in the image;
            `ram`: the Recognize Anything Model (see megasr.semantics.taggers).
        model: of `clip`: `tiny` or `tiny_lq` (the shipped ones), a folder in open_clip's local-dir format, or the name
            of an open_clip model, which needs weights.
        weights: checkpoint of the open_clip model that is named, or RAM's (ram_swin_large_14m.pth).
        lora: of `ram`: a low-rank update for degraded images (SeeSR's DAPE.pth); none without.
        vocabulary: of `clip`: `tiny` (what rendered scenes show), `general` (photographs), or a file with one phrase
            per line, where # begins a comment.
        template: of `clip`: what the text tower reads, {} stands for the phrase. "" is the phrase alone for a CLIP
            with a sigmoid head, "a photo of {}" for one with a softmax head (2103.00020, section 3.1.4).
        labels: of `ram`: the file of its labels, one per line (ram_tag_list.txt).
        label_thresholds: of `ram`: a file with a threshold per label (ram_tag_list_threshold.txt); none without.
        threshold: in [0, 1]; tags are as probable or more. A CLIP with a sigmoid head and RAM give the probability
            that a tag is true. A softmax head only compares texts: there it is the probability relative to the most
            probable phrase of the vocabulary, which therefore always is a tag. None is 0.5, for RAM its 0.68.
        max_tags: at most so many, the most probable ones.
        keep_given: of `clip` and `ram`: only images that come without tags are looked at.

    Raises:
        UsageError: a value is out of range, missing, or has no effect with this kind.
    """

    kind: Literal["given", "scene", "clip", "ram"] = "given"
    model: str = "tiny_lq"
    weights: str = ""
    lora: str = ""
    vocabulary: str = "tiny"
    template: str = ""
    labels: str = ""
    label_thresholds: str = ""
    threshold: float | None = None
    max_tags: int = 10
    keep_given: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _USED_BY["kind"]:
            raise unknown_name("tagger.kind", self.kind, _USED_BY["kind"])
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and self.kind not in _USED_BY[field.name]:
                raise UsageError(
                    f"tagger.{field.name} {value!r} has no effect with tagger.kind {self.kind}: leave it out"
                )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"tagger.threshold is {self.threshold}, but must be from 0 to 1")
        if self.max_tags < 1:
            raise UsageError(f"tagger.max_tags is {self.max_tags}, but must be at least 1")
        if self.template and self.template.count("{}") != 1:
            raise UsageError(f"tagger.template {self.template!r} must hold {{}} once, where the phrase goes")
        if self.kind == "clip":
            check_weights("tagger", self.model, self.weights)
        if self.kind == "ram" and not (self.weights and self.labels):
            raise UsageError(
                "tagger.kind ram needs tagger.weights (ram_swin_large_14m.pth) and tagger.labels (its list)"
            )
        if self.label_thresholds and self.threshold is not None:
            raise UsageError("tagger.label_thresholds has a threshold for every label: leave out tagger.threshold")


def build_tagger(config: TaggerConfig) -> Tagger:
    """The tagger of a config, frozen.

    Raises:
        UsageError: the vocabulary, or the name of the CLIP, cannot be used.
        MegaSRError: a file is missing or broken.
    """
    if config.kind in ("given", "scene"):
        return GivenTagger(required=config.kind == "scene")
    if config.kind == "ram":
        return _build_ram(config)
    phrases = load_vocabulary(config.vocabulary)
    threshold = 0.5 if config.threshold is None else config.threshold
    clip = load_any(config.model, config.weights)
    return ClipTagger(clip, phrases, config.template, threshold, config.max_tags, config.keep_given)


def _build_ram(config: TaggerConfig) -> RamTagger:
    from megasr.semantics.taggers import load_ram

    labels = read_phrases(Path(config.labels))
    ram = load_ram(Path(config.weights), Path(config.lora) if config.lora else None)
    if len(labels) != len(ram.label_embed):
        raise MegaSRError(
            f"tagger.labels {config.labels}: {len(labels)} labels, but {config.weights} knows {len(ram.label_embed)}"
        )
    threshold: torch.Tensor | float = _RAM_THRESHOLD if config.threshold is None else config.threshold
    if config.label_thresholds:
        threshold = read_thresholds(Path(config.label_thresholds), len(labels))
    return RamTagger(ram, labels, threshold, config.max_tags, config.keep_given)
