"""Baselines among the methods of `evaluate` and `compare`: restored from --lq into a folder that is then removed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from megasr.errors import UsageError, unknown_name

HELP = "; or a baseline that restores --lq: bicubic, realesrgan-x4plus, or a .pth of an RRDBNet x4"


class Restored(NamedTuple):
    """Folder of the images of a method, and what made them where a baseline did."""

    folder: Path
    made_by: dict[str, Any]


def is_baseline(method: Path) -> bool:
    """Whether it names a baseline; a folder of that name goes before.

    Raises:
        UsageError: there is no such folder, and the name is nearly that of a baseline.
    """
    if method.is_dir() or method.suffix == ".json":
        return False
    from megasr.inference.baselines import NAMED, is_baseline

    if is_baseline(str(method)):
        return True
    if not method.exists() and get_close_matches(str(method), NAMED):
        raise UsageError(f"{method}: no such folder; {unknown_name('baseline', str(method), NAMED)}")
    return False


def check_baselines(methods: Sequence[Path], arguments: argparse.Namespace) -> int:
    """The factor by which baselines restore: that of --hq over --lq, 4 without --hq or without a baseline.

    Raises:
        UsageError: there is no --lq, or its images do not go with those of --hq.
        MegaSRError: a file is not an image.
    """
    if not (chosen := [str(method) for method in methods if is_baseline(method)]):
        return 4
    if arguments.lq is None:
        raise UsageError(f"{chosen[0]} is a baseline, not a folder here: name the images that it restores (--lq DIR)")
    from megasr.evaluation.pairing import keyed_images, pair_by_name
    from megasr.images import read_size
    from megasr.inference.baselines import common_scale

    if arguments.hq is None:
        keyed_images(arguments.lq, arguments.strip)
        return 4
    pairs = pair_by_name(arguments.lq, arguments.hq, arguments.strip)
    lq = {pair.key: read_size(pair.sr) for pair in pairs}
    return common_scale(lq, {pair.key: read_size(pair.hq) for pair in pairs if pair.hq is not None})


@contextmanager
def restored_baselines(
    methods: Sequence[Path],
    arguments: argparse.Namespace,
    device: Callable[[str | None], str],
    progress: Callable[[str, int, int], None],
) -> Iterator[dict[Path, Restored]]:
    """Every method with its folder of images; those of baselines are removed at the end.

    Args:
        methods: folders, results and baselines.
        arguments: with lq, hq, strip and device.
        device: checks --device.
        progress: is called with what is done, how much of it, of how much.

    Raises:
        UsageError, MegaSRError: as check_baselines and restore_folder do.
    """
    scale_factor = check_baselines(methods, arguments)
    with TemporaryDirectory(prefix="megasr-baselines-") as parent:
        folders = {}
        for number, method in enumerate(methods):
            folder, made_by = method, {}
            if is_baseline(method):
                from megasr.evaluation.pairing import keyed_images
                from megasr.inference.baselines import restore_folder

                folder, lq = Path(parent, str(number)), keyed_images(arguments.lq, arguments.strip)

                def shown(done: int, total: int, label: str = method.name) -> None:
                    progress(f"restoring {label}", done, total)

                made_by = restore_folder(
                    str(method),
                    lq,
                    folder,
                    scale_factor=scale_factor,
                    device=device(arguments.device),
                    progress=shown,
                )
            folders[method] = Restored(folder, {"made_by": made_by} if made_by else {})
        yield folders
