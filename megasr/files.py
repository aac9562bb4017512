"""Files that are whole or not there: the only place that renames a temporary file."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from megasr.errors import MegaSRError, UsageError

PART = ".part"
LOCK = ".lock"
_LOCK_WAIT_S = 3.0  # the workers of a killed process hold its lock until they notice
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP)  # Lustre, unless it is mounted with them


def home_folder() -> Path:
    """The user's home folder.

    Raises:
        UsageError: it is not known, as for a container's user without a name.
    """
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():
        raise UsageError("the home folder of this user is not known: set HOME")
    return home


def at_home(path: str) -> str:
    """A path with the home folder for a leading ~/, which shells do not put in YAML and behind a =."""
    return os.path.expanduser(path) if path.startswith("~/") else path


@contextmanager
def open_whole(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file piece by piece, making its folder. A reader sees the old file, the new one or none, never a part.

    Args:
        path: where the file appears when the block ends without an error.
        durable: the file also survives a power cut from then on.

    Raises:
        MegaSRError: the place cannot be written to; nothing is left behind, but a part if the process is killed.
    """
    # Not tempfile: its files are readable by their owner only, and results are shared.
    temporary = path.with_name(f"{_short(path.name)}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if durable:
                _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MegaSRError(f"cannot write {path}: {error.strerror or error}") from error


def _short(name: str) -> str:
    """A name that leaves room for an ending in the 255 bytes that a file system has: 83 characters of Chinese."""
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return name if len(name) <= 60 else f"{name[:40]}-{digest[:16]}{Path(name).suffix[:8]}"


def write_whole(path: Path, content: bytes, durable: bool = False) -> None:
    """Write a file, making its folder: open_whole for content that is at hand.

    Raises:
        MegaSRError: the place cannot be written to; nothing is left behind.
    """
    with open_whole(path, durable) as file:
        file.write(content)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """64 hexadecimal digits of a file's content.

    Raises:
        MegaSRError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MegaSRError(f"cannot read {path}: {error.strerror or error}") from error


def read_safetensors(path: Path) -> dict[str, Any]:
    """Name -> float32 tensor of a .safetensors file, whatever precision it holds.

    Raises:
        OSError: it is missing, cut short or damaged: the library has an error of its own for that, which is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def read_saved(path: Path, mmap: bool = False) -> Any:
    """Tensors and plain data of a file that torch.save wrote. Other objects are not read: they could run code.

    Args:
        path: the file.
        mmap: leave the tensors on the disk until they are used; only for zips, which torch writes since 1.6.

    Raises:
        OSError: it is missing, damaged, or holds other objects, in one line without torch's advice to read it unsafely.
    """
    import torch

    if mmap and not zipfile.is_zipfile(path):
        raise OSError(_FOREIGN)
    try:
        with warnings.catch_warnings(action="ignore"):  # of TorchScript and of other pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # whatever torch and pickle make of foreign bytes
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise OSError(
            f"it holds {refused[1]}; only tensors and plain data are read, as other objects could run code"
            if refused
            else _FOREIGN
        ) from error


def damaged_record(file: Path | BinaryIO) -> str | None:
    """The first record that has changed since torch.save wrote it, None when none has.

    Every record carries its CRC32, which torch.load does not compare: torch's zip reader is built without.

    Raises:
        OSError: it cannot be read, is cut off, or is not a file of torch.save.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if any(record.compress_type for record in archive.infolist()):  # torch compresses nothing
                raise OSError("its records are compressed: not one that torch.save wrote")
            return archive.testzip()
    except OSError:
        raise
    except Exception as error:  # whatever zipfile makes of foreign bytes
        raise OSError(_FOREIGN) from error


_FOREIGN = "it is cut off or damaged, or not one that torch.save wrote"


def identify_folder(folder: Path) -> str:
    """12 hexadecimal digits over the beginning of every file of weights below a folder: cheap, whatever their size."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin", ".pth")):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)}{path.stat().st_size}".encode() + file.read(1 << 20))
    return digest.hexdigest()[:12]


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left in a folder; hold its lock, a living one may be writing."""
    for part in folder.glob(f"*{PART}"):
        part.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make the folder and be the only process that works in it. A killed process holds no lock.

    Raises:
        MegaSRError: another process works there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file, and open for writing: on NFS a folder cannot be locked.
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise MegaSRError(f"cannot use the folder {folder}: {error.strerror or error}") from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise MegaSRError(f"another process is writing to {folder}; wait for it, or end it") from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise MegaSRError(f"cannot lock {folder}: {error.strerror or error}") from error
            warnings.warn(f"{folder}: its file system has no locks; let one process write there", stacklevel=2)
            return None


def part_of(folder: Path) -> Path:
    """Where `write_whole_folder` fills a folder."""
    return folder.with_name(f"{folder.name}{PART}")


@contextmanager
def write_whole_folder(folder: Path, keep: Path | None = None) -> Iterator[Path]:
    """A folder to fill: it takes the place of `folder` when the block ends without an error, else nothing changes.

    Args:
        folder: where it appears.
        keep: where the one goes that was there; None removes it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = part_of(folder), keep or folder.with_name(f"{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.is_file():
        folder.unlink()
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    if keep is None:
        shutil.rmtree(old, ignore_errors=True)
