"""Nothing that is checked in names a folder of the machine it was written on, or somebody's home."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

FOLDERS = ("work", "home", "Users", "root", "mnt", "tmp")
MACHINE_PATH = re.compile("|".join(f"(?<![\\w.])/{folder}/" for folder in FOLDERS))
TEXT = {".py", ".md", ".cfg", ".toml", ".txt", ".yaml", ".yml", ".json", ".csv", ".tex", ".html", ".sh", ""}


def checked_in_files(root: Path) -> list[Path]:
    """What git tracks, or would: nothing ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [root / name for name in listing.stdout.split("\0") if name and (root / name).is_file()]


def test_no_machine_paths(root: Path) -> None:
    files = [path for path in checked_in_files(root) if path.suffix in TEXT]
    assert len(files) > 20
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


def test_the_pattern_finds() -> None:
    assert MACHINE_PATH.search("open('/" + "home/ann/data')")
    assert not MACHINE_PATH.search("https://example.org/home/page and runs/tmp/x")
