"""Fetch weights: resumable downloads from mirrors, checked before they are put in place."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from megasr import __version__
from megasr.errors import MegaSRError, UsageError
from megasr.files import PART, file_sha256, locked_folder
from megasr.weights.local import folder_of, known_weight, remembered_sha256, target_of, wrong_size
from megasr.weights.manifest import PublishedFile, Weight

# (file name, bytes that are here, bytes of the whole or None)
Report = Callable[[str, int, int | None], None]

_TIMEOUT_S = 30.0
_BLOCK = 1 << 20
_SLOWEST_BYTES_S = 1000  # a mirror that is slower for longer than the time limit gives way to the next
_MOST_BYTES = 16 << 30  # of a file whose size neither the manifest nor the mirror says
_HTTP = ("https://", "http://")
_VALIDATOR = f"{PART}.etag"
Response = http.client.HTTPResponse


class MirrorError(Exception):
    """A mirror does not give a file; another one may. `absent`: it says that it has no such file."""

    def __init__(self, message: str, absent: bool = False) -> None:
        super().__init__(message)
        self.absent = absent


def part_of(target: Path) -> Path:
    """Where the bytes of a file lie until all are there."""
    return target.with_name(f"{target.name}{PART}")


def forget_part(part: Path) -> None:
    """Remove what arrived of a file."""
    part.unlink(missing_ok=True)
    _validator_of(part).unlink(missing_ok=True)


def _validator_of(part: Path) -> Path:
    return part.with_name(f"{part.name.removesuffix(PART)}{_VALIDATOR}")


def download(url: str, target: Path, file: PublishedFile, report: Report) -> bool:
    """Bring the part of `target` to its full length; go on after interruptions as long as each request brings more.

    Args:
        url: http or https address of the file.
        target: path of the file; the bytes lie beside it, see `part_of`.
        file: what is known of it.
        report: called with the progress.

    Returns:
        Whether one request brought the whole file: the pieces of several may not belong together.

    Raises:
        MirrorError: the address does not give the file, or gives no more of it.
        MegaSRError: the disk is full or cannot be written to. The part is kept.
    """
    part = part_of(target)
    if _size(part) == 0 or (file.size is not None and _size(part) > file.size):
        forget_part(part)
    one_piece, most = not part.exists(), -1
    while not _request_rest(url, part, file, report):
        if _size(part) <= most:
            raise MirrorError(f"{url} stopped after {_size(part)} bytes")
        one_piece, most = False, _size(part)
    _validator_of(part).unlink(missing_ok=True)
    return one_piece


def _request_rest(url: str, part: Path, file: PublishedFile, report: Report) -> bool:
    """One request for what is missing. True when the file is whole, False when the connection broke."""
    if file.size is not None and _size(part) == file.size:
        return True
    response = _open(url, part, file)
    if response is None:
        return True
    with response:
        offset = _size(part) if response.status == 206 else 0
        total = _total(response, offset)
        _refuse(url, response, file, total)
        _refuse_full_disk(part, offset, total)
        if offset == 0:
            forget_part(part)
            _write_validator(url, part, response)
        limit = file.size or total or _MOST_BYTES
        whole = _copy(url, response, part, offset, limit, lambda done: report(file.name, done, total))
        return whole if total is None else _size(part) == total


def _open(url: str, part: Path, file: PublishedFile) -> Response | None:
    """The answer to a request for the rest of a file, or for all of it; None when nothing lacks, says the server."""
    try:
        response = _answer(url, _range(url, part, file))
        if response.status != 206 or _continues(url, part, response):
            return response
        response.close()
    except HTTPError as error:
        error.close()
        if error.code != 416:
            raise MirrorError(f"{url} answers {error.code} {error.reason}", error.code in (404, 410)) from error
        if error.headers.get("Content-Range", "") == f"bytes */{_size(part)}":
            return None
    forget_part(part)
    try:
        return _answer(url, {})
    except HTTPError as error:
        error.close()
        raise MirrorError(f"{url} answers {error.code} {error.reason}") from error


def _answer(url: str, headers: dict[str, str]) -> Response:
    if not url.startswith(_HTTP):
        raise MirrorError(f"{url} is no http address")
    fixed = {"User-Agent": f"megasr/{__version__}", "Accept-Encoding": "identity"}
    try:
        response = cast(Response, urlopen(Request(url, headers={**fixed, **headers}), timeout=_TIMEOUT_S))
        if not response.url.startswith(_HTTP):  # urllib follows to ftp
            raise MirrorError(f"{url} redirects to {response.url}, which is no http address")
        return response
    except HTTPError:
        raise
    except URLError as error:
        raise MirrorError(f"{url} cannot be reached: {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MirrorError(f"{url} cannot be reached: {error or type(error).__name__}") from error


def _continues(url: str, part: Path, response: Response) -> bool:
    """The answer begins where the part ends, and is of the same file: some servers do not know If-Range."""
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    before, now = _validator(url, part), _validator_in(response)
    return start is not None and int(start[1]) == _size(part) and (not before or not now or before == now)


def _range(url: str, part: Path, file: PublishedFile) -> dict[str, str]:
    """The headers that ask for the rest. Without a way to tell that the file is still the same, all is asked for."""
    validator = _validator(url, part)
    if not part.exists() or not (validator or file.sha256):
        return {}
    headers = {"Range": f"bytes={_size(part)}-"}
    return {**headers, "If-Range": validator} if validator else headers


def _validator(url: str, part: Path) -> str:
    """What told the part's file from others at this address; empty when it came from another."""
    record = _validator_of(part)
    source, _, validator = record.read_text().partition("\n") if record.exists() else ("", "", "")
    return validator if source == url else ""


def _validator_in(response: Response) -> str:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _write_validator(url: str, part: Path, response: Response) -> None:
    try:
        _validator_of(part).write_text(f"{url}\n{_validator_in(response)}")
    except OSError as error:
        raise _disk_error(part, error) from error


def _total(response: Response, offset: int) -> int | None:
    """Bytes of the whole file, as the server says."""
    whole = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    if response.status == 206 and whole:
        return int(whole[1])
    length = response.headers.get("Content-Length", "")
    return offset + int(length) if length.isdecimal() else None


def _refuse(url: str, response: Response, file: PublishedFile, total: int | None) -> None:
    if response.headers.get_content_type() == "text/html":
        raise MirrorError(f"{url} answers with a web page")
    if total is None and file.size is None and not file.sha256:
        raise MirrorError(f"{url} does not say how long the file is")
    if total is not None and file.size is not None and total != file.size:
        raise MirrorError(f"{url} offers {total} bytes, but {file.name} has {file.size}")


def _refuse_full_disk(part: Path, offset: int, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    needed = 0 if total is None else total - offset
    if needed > free:
        raise MegaSRError(f"{part.parent} has no room: {needed} bytes are needed, {free} are free")


def _copy(url: str, response: Response, part: Path, offset: int, limit: int, report: Callable[[int], None]) -> bool:
    """Append the body to the part. False when the connection broke.

    Raises:
        MirrorError: more than `limit` bytes come, or too few in the time.
        MegaSRError: the disk fails.
    """
    began, done = time.monotonic(), offset
    try:
        with part.open("ab" if offset else "wb") as file:
            while block := _read(response):
                _write(file, block)
                done += len(block)
                report(done)
                _refuse_lies(url, part, done, limit, done - offset, time.monotonic() - began)
    except OSError as error:
        raise _disk_error(part, error) from error
    return block is not None


def _refuse_lies(url: str, part: Path, done: int, limit: int, arrived: int, took_s: float) -> None:
    if done > limit:
        forget_part(part)
        raise MirrorError(f"{url} sends more than {limit} bytes")
    if took_s > _TIMEOUT_S + arrived / _SLOWEST_BYTES_S:
        raise MirrorError(f"{url} is too slow: {arrived} bytes in {took_s:.0f} s")


def _read(response: Response) -> bytes | None:
    """The next bytes; empty at the end, None when the connection broke."""
    try:
        return response.read1(_BLOCK)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _write(file: BinaryIO, block: bytes) -> None:
    file.write(block)
    file.flush()


def _disk_error(part: Path, error: OSError) -> MegaSRError:
    return MegaSRError(f"cannot write {part}: {error.strerror or error}; what arrived is kept, run the command again")


def finish(part: Path, target: Path) -> None:
    """The part becomes the file, and survives a power cut from then on.

    Raises:
        MegaSRError: the disk fails.
    """
    try:
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise _disk_error(part, error) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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
