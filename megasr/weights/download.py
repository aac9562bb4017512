"""Fetch weights: by huggingface_hub, which bridges broken connections, and from plain addresses by pooch.

Both put a file in place when it is whole; those that are there are not fetched again.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

from megasr.errors import MegaSRError, UsageError, first_line
from megasr.files import locked_folder
from megasr.weights.local import check_file, folder_of, named_weights, target_of
from megasr.weights.manifest import PublishedFile, Weight

_HUB = re.compile(r"(?:https://huggingface\.co/)?(spaces/)?([^/:]+/[^/:]+)(?:/resolve/main/.*)?")
_TIMEOUT_S = 30.0


def fetch(name: str, root: Path | None = None) -> Path:
    """Download what lacks of a weight; published files that are here are left alone.

    Args:
        name: of the manifest.
        root: folder for weights; None is `$MEGASR_WEIGHTS`. The files lie in a folder of the weight's name below it.

    Returns:
        The file of a weight that is one file, the folder of any other.

    Raises:
        UsageError: there is no such weight, or it cannot be put into another folder.
        MegaSRError: this machine is offline, no mirror gives a file, the disk fails, or another process is fetching.
    """
    (weight,) = named_weights([name])
    refuse_offline()
    if weight.place == "hub":
        return _fetch_repository(weight, root)
    folder = folder_of(weight, root)
    with locked_folder(folder):
        for file in weight.files:
            paths = ((form, folder / form.name) for form in file.forms)
            if not any(path.is_file() and not check_file(form, path) for form, path in paths):
                _fetch_file(weight, file, folder)
    return target_of(weight, folder)


def refuse_offline() -> None:
    """Raise MegaSRError when this machine was told to stay offline."""
    for variable in ("MEGASR_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise MegaSRError(f"{variable} is set: nothing is fetched. Unset it, or copy the files by hand")


def _fetch_file(weight: Weight, file: PublishedFile, folder: Path) -> None:
    """Try the mirrors in order, and the forms of the file at each."""
    faults = []
    for mirror in weight.mirrors:
        for form in file.forms:
            path = folder / form.name
            try:
                path.unlink(missing_ok=True)  # it is not the published one
                _download(mirror, form.name, folder)
                fault = check_file(form, path)
            except Exception as error:  # of the HTTP libraries, of the hub's client and of the disk
                faults.append(f"{mirror}: {first_line(error).rstrip('.')}")
                continue
            if not fault:
                return
            path.unlink()
            faults.append(f"{mirror} gives another file: {fault}")
    others = f"; also hosted as {weight.elsewhere}" if weight.elsewhere else ""
    raise MegaSRError(
        f"cannot fetch {weight.name}, {file.name}: {'; '.join(faults)}{others}. Run it again; whole files are kept"
    )


def _download(mirror: str, name: str, folder: Path) -> None:
    if repository := _HUB.fullmatch(mirror):
        from huggingface_hub import hf_hub_download

        repo_type = "space" if repository[1] else None
        hf_hub_download(repository[2], name, repo_type=repo_type, local_dir=folder, endpoint=_endpoint())
        return
    import pooch

    pooch.get_logger().setLevel("WARNING")
    url = f"{mirror}{quote(name)}" if mirror.endswith("/") else mirror
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_S)
    pooch.retrieve(url, known_hash=None, fname=name, path=folder, downloader=downloader)


def _endpoint() -> str | None:
    """Another host of the hub; its library reads the variable only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _fetch_repository(weight: Weight, root: Path | None) -> Path:
    """A weight that its library reads in the Hugging Face cache only."""
    from huggingface_hub import snapshot_download

    if root is not None:
        raise UsageError(f"{weight.name} is read in the Hugging Face cache only: leave out --to")
    names = [file.name for file in weight.files]
    try:
        return Path(snapshot_download(weight.mirrors[0], endpoint=_endpoint(), allow_patterns=names))
    except Exception as error:  # of the HTTP library that this version of huggingface_hub uses
        raise MegaSRError(f"cannot fetch {weight.name} from {weight.mirrors[0]}: {first_line(error)}") from error
