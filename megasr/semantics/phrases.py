"""Lists of phrases in text files: vocabularies, which ship with the package, and the labels of a tagger."""

from __future__ import annotations

from pathlib import Path

import torch

from megasr.errors import MegaSRError, UsageError

VOCABULARIES = Path(__file__).parent.parent / "assets" / "vocabularies"


def list_vocabularies() -> list[str]:
    """Names of those that ship with the package."""
    return sorted(file.stem for file in VOCABULARIES.glob("*.txt"))


def load_vocabulary(source: str) -> tuple[str, ...]:
    """The phrases of a vocabulary.

    Args:
        source: `tiny`, `general`, or a file (see read_phrases).

    Raises:
        UsageError: it is neither, or a line cannot be used.
    """
    shipped = VOCABULARIES / f"{source}.txt"
    if source in list_vocabularies():
        return read_phrases(shipped)
    if not Path(source).is_file():
        raise UsageError(f"vocabulary {source!r} is neither {', '.join(list_vocabularies())} nor a file")
    return read_phrases(Path(source))


def read_phrases(file: Path) -> tuple[str, ...]:
    """One phrase per line in UTF-8; # begins a comment, blank lines are skipped.

    Raises:
        MegaSRError: the file cannot be read.
        UsageError: a phrase occurs twice or holds a comma, which separates tags; or there is none. Names the line.
    """
    lines: dict[str, int] = {}
    phrases = []
    every = _read_lines(file)
    for number, line in enumerate(every, 1):
        phrase = " ".join(line.partition("#")[0].split())
        if not phrase:
            continue
        if "," in phrase:
            raise UsageError(f"{file}, line {number}: {phrase!r} holds a comma: one phrase per line, without commas")
        first = lines.setdefault(phrase.casefold(), number)
        if first != number:
            raise UsageError(f"{file}, line {number}: {phrase!r} is in line {first} already: leave one out")
        phrases.append(phrase)
    if not phrases:
        raise UsageError(f"{file}: none of its {len(every)} lines has a phrase")
    return tuple(phrases)


def read_thresholds(file: Path, count: int) -> torch.Tensor:
    """(count,) float32 in [0, 1], one per line.

    Raises:
        MegaSRError: the file cannot be read.
        UsageError: a line is no number from 0 to 1, or there are more or fewer of them. Names the line.
    """
    values = []
    for number, line in enumerate(_read_lines(file), 1):
        try:
            values.append(float(line))
        except ValueError:
            raise UsageError(f"{file}, line {number}: {line!r} is no number") from None
        if not 0 <= values[-1] <= 1:
            raise UsageError(f"{file}, line {number}: the threshold is {line}, but must be from 0 to 1")
    if len(values) != count:
        raise UsageError(f"{file}: {len(values)} lines of thresholds for {count} labels")
    return torch.tensor(values)


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MegaSRError(f"{file} cannot be read: {reason}") from error
