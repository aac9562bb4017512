"""Put a weight on this machine: every file from the first mirror that gives the published one."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from megasr.errors import MegaSRError, UsageError
from megasr.files import file_sha256, locked_folder
from megasr.weights.checks import remembered_sha256
from megasr.weights.download import MirrorError, Report, download, finish, forget_part, part_of
from megasr.weights.local import folder_of, known_weight, target_of, wrong_size
from megasr.weights.published import PublishedFile, Weight

WRONG = ".wrong-sha256"
_HUB = "https://huggingface.co"


def _silent(what: str, done: int, total: int | None) -> None:
    pass


def fetch(name: str, root: Path | None = None, report: Report = _silent) -> Path:
    """Download what lacks of a weight; what is here and is the published file is left alone.

    Args:
        name: of the manifest.
        root: folder for weights; `$MEGASR_WEIGHTS` when None. The files lie in a folder of the weight's name below it.
        report: called with the progress of every file.

    Returns:
        The file of a weight that is one file, the folder of any other.

    Raises:
        UsageError: there is no such weight, or it cannot be put into another folder.
        MegaSRError: this machine is offline, no mirror gives a file, or the disk fails. Run again, it goes on.
    """
    weight = known_weight(name)
    refuse_offline()
    if weight.place == "hub":
        return _fetch_repository(weight, root)
    folder = folder_of(weight, root)
    mirrors = list(weight.mirrors)
    with locked_folder(folder):
        for file in weight.files:
            if not any(_is_published(folder / form.name, form) for form in file.forms):
                _fetch_file(weight, file, folder, mirrors, report)
    return target_of(weight, folder)


def refuse_offline() -> None:
    """Raise MegaSRError when this machine was told to stay offline."""
    for variable in ("MEGASR_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise MegaSRError(f"{variable} is set: nothing is fetched. Unset it, or copy the files by hand")


def _is_published(path: Path, file: PublishedFile) -> bool:
    if not path.is_file() or wrong_size(file, path):
        return False
    return not file.sha256 or remembered_sha256(path).startswith(file.sha256)


def _fetch_file(weight: Weight, file: PublishedFile, folder: Path, mirrors: list[str], report: Report) -> None:
    """Try the mirrors in order. One that fails goes to the end, where the next file finds it."""
    faults = []
    for mirror in tuple(mirrors):
        for form in file.forms:
            try:
                return _receive(address(mirror, form.name), folder / form.name, form, report)
            except MirrorError as error:
                faults.append(str(error))
                if not error.absent:
                    break
        mirrors.append(mirrors.pop(mirrors.index(mirror)))
    others = f"; also hosted as {weight.elsewhere}" if weight.elsewhere else ""
    raise MegaSRError(f"cannot fetch {weight.name}, {file.name}: {'; '.join(faults)}{others}. Run again, it goes on")


def address(mirror: str, name: str) -> str:
    """The address of a file at a mirror. HF_ENDPOINT names another host of the hub's repositories."""
    hub = os.environ.get("HF_ENDPOINT") or _HUB
    if "://" not in mirror:
        return f"{hub.rstrip('/')}/{mirror}/resolve/main/{quote(name)}"
    if mirror.startswith(f"{_HUB}/"):
        mirror = hub.rstrip("/") + mirror.removeprefix(_HUB)
    return f"{mirror}{quote(name)}" if mirror.endswith("/") else mirror


def _receive(url: str, target: Path, file: PublishedFile, report: Report) -> None:
    """Download one file and put it in its place. Pieces that do not belong together are fetched anew once."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MegaSRError(f"cannot make {target.parent}: {error.strerror or error}") from error
    part = part_of(target)
    one_piece = download(url, target, file, report)
    if (fault := _fault(part, file)) and not one_piece:
        forget_part(part)
        download(url, target, file, report)
        fault = _fault(part, file)
    if fault:
        aside = target.with_name(f"{target.name}{WRONG}")
        os.replace(part, aside)
        raise MirrorError(f"{url} gives another file, kept as {aside}: {fault}")
    finish(part, target)


def _fault(part: Path, file: PublishedFile) -> str:
    if fault := wrong_size(file, part):
        return fault
    found = file_sha256(part)
    return "" if found.startswith(file.sha256) else f"sha256 expected {file.sha256}, found {found}"


def _fetch_repository(weight: Weight, root: Path | None) -> Path:
    """A weight that its library reads in the Hugging Face cache only."""
    from huggingface_hub import snapshot_download

    if root is not None:
        raise UsageError(f"{weight.name} is read in the Hugging Face cache only: leave out --to")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    names = [file.name for file in weight.files]
    try:
        return Path(snapshot_download(weight.mirrors[0], endpoint=endpoint, allow_patterns=names))
    except Exception as error:  # of the HTTP library that this version of huggingface_hub uses
        raise MegaSRError(f"cannot fetch {weight.name} from {weight.mirrors[0]}: {error}") from error
