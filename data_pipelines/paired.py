"""Real lq/hq pairs: one scene photographed with two focal lengths and aligned (RealSR, DRealSR)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_pipelines.folder import hold_out, index_folder, read_or_drop, tags_or_drop
from data_pipelines.mixture import shuffled
from data_pipelines.samples import Sample, names_fingerprint
from megasr.errors import MegaSRError, UsageError
from megasr.images import from_uint8, read_size

_LINES = 20  # of a report; the rest is counted
Pair = tuple[str, Path, Path]  # key, lq, hq


class PairedSource:
    """Real lq/hq pairs, checked when the source is made.

    Layouts, tried in this order:

    * `root` and `lq_root`: two folders of hq and lq. DRealSR's are test_HR and test_LR.
    * `root` with the folders lq and hq in it.
    * `root` with both kinds of files side by side. This is RealSR v3: Canon_001_HR.png and Canon_001_LR4.png.

    In two folders the files of a pair have the same relative name, or names that differ in their end: `_HR` or `_x1`
    for hq, and `_LR4`, `_x4`, `x4` (DIV2K) or `_x1` for lq, where 4 stands for scale_factor. Side by side it is `_HR`
    or `_x1` for hq, and `_LR4` or `_x4` for lq.

    Args:
        root: folder of the pairs, or of hq when lq_root is given.
        scale_factor: size of hq over size of lq, the same for all pairs.
        lq_root: folder of lq.

    Raises:
        UsageError: a folder is missing or empty, an image has no partner, or the sizes of a pair do not fit: the
            first 20 of them are listed.
    """

    def __init__(self, root: str | Path, scale_factor: int, lq_root: str | Path | None = None) -> None:
        root = Path(root)
        problems: list[str] = []
        if lq_root is None and (root / "lq").is_dir() and (root / "hq").is_dir():
            root, lq_root = root / "hq", root / "lq"
        if lq_root is None:
            lq, hq, problems = _split_by_name(root, scale_factor)
        else:
            lq, hq = index_folder(lq_root), index_folder(root)
            same = lq.keys() & hq.keys()
            lq = _drop_ends(lq, same, (f"_LR{scale_factor}", f"_x{scale_factor}", f"x{scale_factor}", "_x1"))
            hq = _drop_ends(hq, same, ("_HR", "_x1"))
        problems += [f"{lq[key]}: no hq called {key!r}" for key in lq.keys() - hq.keys()]
        problems += [f"{hq[key]}: no lq called {key!r}" for key in hq.keys() - lq.keys()]
        self.pairs: list[Pair] = [(key, lq[key], hq[key]) for key in sorted(lq.keys() & hq.keys())]
        problems += [problem for pair in self.pairs if (problem := _size_problem(pair, scale_factor))]
        if lq_root is None and problems and not self.pairs:
            sides = [side for side in ("lq", "hq") if (root / side).is_dir()]
            if len(sides) == 1:
                lacking = "hq" if sides == ["lq"] else "lq"
                raise UsageError(f"{root} has a folder {sides[0]} and none called {lacking}: pairs need both")
        if problems:
            lines = list_problems(sorted(problems))
            raise UsageError(f"{root}: {len(problems)} images do not make pairs of x{scale_factor}:{lines}")

    def split(self, count: int, size_px: int) -> tuple[PairedSource, PairedSource]:
        """(the others, the pairs that hold_out takes for evaluation)."""
        chosen = hold_out([(key, hq) for key, _, hq in self.pairs], count, size_px)
        parts = copy.copy(self), copy.copy(self)
        parts[0].pairs = [pair for pair in self.pairs if pair[0] not in chosen]
        parts[1].pairs = [pair for pair in self.pairs if pair[0] in chosen]
        return parts

    @property
    def fingerprint(self) -> str:
        """Of the names of all pairs."""
        return names_fingerprint(key for key, _, _ in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def key(self, index: int) -> str:
        """Key of pair `index`."""
        return self.pairs[index][0]

    def read(self, index: int) -> Sample:
        """Pair `index`, whole, with the tags beside hq. Raises UnusableSampleError when a file is unreadable."""
        key, _, hq = self.pairs[index]
        return replace(self.read_images(index), tags=tags_or_drop(key, hq))

    def tags(self, index: int) -> str:
        """The tags of read(index), without its images. Raises UnusableSampleError when they cannot be read."""
        key, _, hq = self.pairs[index]
        return tags_or_drop(key, hq)

    def read_images(self, index: int) -> Sample:
        """Pair `index`, whole, without tags. Raises UnusableSampleError when an image is unreadable."""
        key, lq, hq = self.pairs[index]
        return Sample(key, read_or_drop(key, hq), lq=from_uint8(read_or_drop(key, lq)))

    def order(self, draw: int, seed: int) -> int:
        """The pair of training draw `draw`."""
        return shuffled(draw, len(self.pairs), seed)


def list_problems(problems: Sequence[str]) -> str:
    """The first 20 lines of a report, indented, and the number of the others."""
    more = [f"and {len(problems) - _LINES} more"] if len(problems) > _LINES else []
    return "".join(f"\n  {line}" for line in [*problems[:_LINES], *more])


def _split_by_name(root: Path, scale_factor: int) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """(key -> lq, key -> hq, problems) of one folder that holds both."""
    lq_ends, hq_ends = (f"_LR{scale_factor}", f"_x{scale_factor}"), ("_HR", "_x1")
    lq: dict[str, Path] = {}
    hq: dict[str, Path] = {}
    problems = []
    for name, path in index_folder(root).items():
        side, ends = (hq, hq_ends) if name.endswith(hq_ends) else (lq, lq_ends)
        key = _without_end(name, ends)
        if key == name:
            problems.append(f"{path}: its name ends in none of {' '.join((*hq_ends, *lq_ends))}")
        elif key in side:
            problems.append(f"{path}: its pair {key!r} has {side[key].name} already")
        else:
            side[key] = path
    return lq, hq, problems


def _drop_ends(files: dict[str, Path], same: set[str], ends: Sequence[str]) -> dict[str, Path]:
    keys = {name: name if name in same else _without_end(name, ends) for name in files}
    uses = Counter(keys.values())
    # two names that would become one keep their ends, and are reported as without partner
    return {key if uses[key] == 1 else name: files[name] for name, key in keys.items()}


def _without_end(name: str, ends: Sequence[str]) -> str:
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)


def _size_problem(pair: Pair, scale_factor: int) -> str | None:
    _, lq, hq = pair
    try:
        (lq_height, lq_width), (hq_height, hq_width) = read_size(lq), read_size(hq)
    except MegaSRError as error:
        return str(error)
    if (hq_height, hq_width) == (lq_height * scale_factor, lq_width * scale_factor):
        return None
    return f"{hq}: {hq_width}x{hq_height} px is not {scale_factor} x {lq_width}x{lq_height} px of {lq}"
