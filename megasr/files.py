"""Files that are whole or not there: the only place that renames a temporary file."""

from __future__ import annotations

import os
from pathlib import Path

from megasr.errors import MegaSRError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, making its folder. A reader sees the old file, the new one or none, never a part.

    Raises:
        MegaSRError: the place cannot be written to; nothing is left behind.
    """
    # Not tempfile: its files are readable by their owner only, and results are shared.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MegaSRError(f"cannot write {path}: {error.strerror or error}") from error
