"""Images of two folders are paired by name. Needs no torch: what does not pair is answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megasr.errors import UsageError
from megasr.image_decoding import list_images

_SHOWN = 20


class Pair(NamedTuple):
    """One image to measure: its key, the file of sr, and that of hq in sets that have it."""

    key: str
    sr: Path
    hq: Path | None


def keyed_images(folder: Path, strip: Sequence[str] = ()) -> dict[str, Path]:
    """Key -> file of every image below a folder, sorted by key.

    The key is the path below the folder without the file's ending and without one of the endings in `strip`
    (`_LR4`, `_HR`).

    Raises:
        UsageError: the folder is missing or holds no image, or two files have one key (they are listed).
    """
    images: dict[str, Path] = {}
    repeated = []
    for path in list_images(folder):
        key = path.relative_to(folder).with_suffix("").as_posix()
        endings = [s for s in strip if path.stem.endswith(s) and path.stem != s]
        key = key.removesuffix(max(endings, key=len, default=""))
        if key in images:
            repeated.append(f"{images[key].relative_to(folder)} and {path.relative_to(folder)}")
        images[key] = path
    if repeated:
        raise UsageError(f"{folder}: files of one name: {_some(repeated)}")
    return dict(sorted(images.items()))


def pair_by_name(sr: Path, hq: Path | None, strip: Sequence[str] = ()) -> list[Pair]:
    """Pair the images of two folders by key (`keyed_images`); without hq, list those of one.

    Raises:
        UsageError: names are missing in one of the folders, or occur twice; they are listed.
    """
    of_sr = keyed_images(sr, strip)
    if hq is None:
        return [Pair(key, path, None) for key, path in of_sr.items()]
    of_hq = keyed_images(hq, strip)
    lacking = {sr: sorted(of_hq.keys() - of_sr.keys()), hq: sorted(of_sr.keys() - of_hq.keys())}
    if any(lacking.values()):
        text = "; ".join(f"{folder} lacks {_some(names)}" for folder, names in lacking.items() if names)
        hint = "" if of_sr.keys() & of_hq.keys() else " (endings such as _LR4 and _HR are taken off with --strip)"
        raise UsageError(f"images are paired by name: {text}{hint}")
    return [Pair(key, path, of_hq[key]) for key, path in of_sr.items()]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
