"""Files that are whole or not there: the only place that renames a temporary file."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
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
    """A path with the home folder for a leading ~/, which shells leave in YAML and behind a =."""
    return os.path.expanduser(path) if path.startswith("~/") else path


@contextmanager
def open_whole(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes its place whole when the block ends without an error; makes its folder.

    Args:
        path: where it appears.
        durable: it also survives a power cut from then on.

    Raises:
        MegaSRError: the place cannot be written to; nothing is left behind, but a part if the process is killed.
    """
    # Not tempfile: its files are readable by their owner only, and results are shared.
    short = f"{path.name[:40]}.{os.getpid()}-{hash(path.name) & 0xFFFFFF:x}{PART}"  # 255 bytes hold 83 characters
    temporary = path.with_name(short)
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
                descriptor = os.open(path.parent, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MegaSRError(f"cannot write {path}: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes, durable: bool = False) -> None:
    """Write a file whole or not at all, making its folder; raises MegaSRError as open_whole does."""
    with open_whole(path, durable) as file:
        file.write(content)


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
    """Name -> float32 tensor of a .safetensors file.

    Raises:
        OSError: it is missing, cut short or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def read_saved(path: Path, mmap: bool = False) -> Any:
    """Tensors and plain data of a file that torch.save wrote; other objects could run code and are refused.

    Args:
        path: the file.
        mmap: leave the tensors on the disk until they are used; only for zips, which torch writes since 1.6.

    Raises:
        OSError: it is missing, damaged, or holds other objects.
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
    """The first record of a torch.save file whose CRC32 is wrong, None when all are right; torch.load compares none.

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
    """12 hexadecimal digits over the beginning of every file of weights below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin", ".pth")):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)}{path.stat().st_size}".encode() + file.read(1 << 20))
    return digest.hexdigest()[:12]


def check_page(option: str, path: Path) -> None:
    """Raises UsageError when a page would be written over something else, such as a photograph."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{option} {path}: name an HTML file, which ends in .html")
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name an HTML file")


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
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=_LOCK_WAIT_S)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise MegaSRError(f"another process is writing to {folder}; wait for it, or end it") from error
    except OSError as error:
        raise MegaSRError(f"cannot use the folder {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


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
    temporary = part_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.is_file():
        folder.unlink()
    if not folder.exists():
        temporary.rename(folder)
        return
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)
    # A name that can be guessed may be somebody's folder.
    room = None if keep is not None else Path(tempfile.mkdtemp(prefix=f"{folder.name}.old-", dir=folder.parent))
    folder.rename(keep or room / folder.name)  # type: ignore[operator]
    temporary.rename(folder)
    if room is not None:
        shutil.rmtree(room, ignore_errors=True)
