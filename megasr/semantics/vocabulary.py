"""open_clip's byte-pair vocabulary cut to a part of its merges: a small model need not carry 49,408 embeddings."""

from __future__ import annotations

import functools
import gzip
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

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
