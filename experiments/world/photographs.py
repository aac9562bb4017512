"""Fetch the photographs that the next tiny prior is trained on from Debian packages, with their licences.

The packages hold wallpapers and the pictures of a children's learning program; photographs.csv names the photographs
among them and what they show. They are halved, which hides their compression, and written as PNG with their tags beside
them, as FolderDataModule reads them. ATTRIBUTION.csv has the licence and the authors of each.

`python -m experiments.world.photographs --output runs/world/photographs`
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from megasr.errors import MegaSRError
from megasr.files import write_whole_folder

LIST = Path(__file__).with_suffix(".csv")
MIN_SIDE_PX = 256  # of what is written
_HELP = "download the packages of your Debian release from packages.debian.org and pass their folder as --packages"


def resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file in a Qt resource archive (.rcc) that is stored plainly or deflated.

    Raises:
        MegaSRError: this is no Qt resource archive.
    """
    if content[:4] != b"qres":
        raise MegaSRError("not a Qt resource archive: it does not start with qres")
    version, tree, data, names = struct.unpack(">4I", content[4:20])
    node = 14 if version == 1 else 22  # bytes; later versions store a time as well

    def walk(number: int, parent: PurePosixPath) -> Iterator[tuple[str, bytes]]:
        name_at, flags, first, second = struct.unpack_from(">IHII", content, tree + number * node)
        length = struct.unpack_from(">H", content, names + name_at)[0]
        start = names + name_at + 6
        path = parent / content[start : start + 2 * length].decode("utf-16-be") if number else parent
        if flags & 2:  # a folder: number of children, and the first
            for child in range(second, second + first):
                yield from walk(child, path)
        elif not flags & 4:  # zstandard, which these packages do not use
            size = struct.unpack_from(">I", content, data + second)[0]
            stored = content[data + second + 4 : data + second + 4 + size]
            yield str(path), zlib.decompress(stored[4:]) if flags & 1 else stored

    yield from walk(0, PurePosixPath())


def licence_of(copyright_file: str, source: str) -> tuple[str, str]:
    """(licence, authors) of a file after a machine-readable debian/copyright: the last paragraph that matches holds.

    Args:
        copyright_file: its text.
        source: path in the source package; the suffix does not matter, for packages re-encode what they ship.
    """
    answer = ("unknown", "unknown")
    for paragraph in re.split(r"\n\s*\n", copyright_file):
        fields = dict(re.findall(r"^(\S+):\s*(.*(?:\n[ \t]+.*)*)", paragraph, flags=re.MULTILINE))
        patterns = [p if p.endswith("*") else p.rsplit(".", 1)[0] for p in fields.get("Files", "").split()]
        if any(fnmatch.fnmatchcase(source.rsplit(".", 1)[0], pattern) for pattern in patterns):
            authors = "; ".join(line.strip() for line in fields["Copyright"].splitlines())
            answer = fields["License"].splitlines()[0], authors
    return answer


def download(packages: list[str], folder: Path) -> None:
    """`apt-get download`, which needs no root and installs nothing. Raises MegaSRError when it fails."""
    if shutil.which("apt-get") is None:
        raise MegaSRError(f"apt-get was not found: {_HELP}")
    _run(["apt-get", "download", *packages], f"; try apt-get update, or {_HELP}", cwd=folder)


def _run(command: list[str], advice: str = "", cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MegaSRError(f"{' '.join(command)}: {last}{advice}")


def unpack(package: str, packages: Path, folder: Path) -> dict[str, bytes]:
    """Path -> content of every file of a package, with those of Qt resource archives in it.

    Raises:
        MegaSRError: the package is not in the folder, or cannot be unpacked.
    """
    archives = sorted(packages.glob(f"{package}_*.deb"))
    if not archives:
        raise MegaSRError(f"{packages} holds no {package}_*.deb: {_HELP}")
    root = folder / package
    _run(["dpkg-deb", "-x", str(archives[-1]), str(root)])
    content: dict[str, bytes] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        content |= dict(resources(data)) if path.suffix == ".rcc" else {str(path.relative_to(root)): data}
    return content


def halve(content: bytes, name: str) -> np.ndarray:
    """Decode, and average 2 x 2 pixels: (H / 2, W / 2, 3) uint8 in OpenCV's order of channels.

    Raises:
        MegaSRError: it cannot be decoded, or is too small.
    """
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None or min(image.shape[:2]) < 2 * MIN_SIDE_PX:
        raise MegaSRError(f"{name}: {'cannot be decoded' if image is None else f'has {image.shape[:2]} px'}")
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)


def write_photographs(packages: Path, folder: Path) -> int:
    """Write NAME.png and NAME.txt for every row of photographs.csv, and ATTRIBUTION.csv; returns their number.

    Raises:
        MegaSRError: a package or a photograph is missing.
    """
    with LIST.open(newline="") as file:
        rows = list(csv.DictReader(file))
    attribution = [("photograph", "package", "licence", "authors")]
    with write_whole_folder(folder) as written, tempfile.TemporaryDirectory() as unpacked:
        for package in dict.fromkeys(row["package"] for row in rows):
            content = unpack(package, packages, Path(unpacked))
            copyright_file = content[f"usr/share/doc/{package}/copyright"].decode()
            for row in (row for row in rows if row["package"] == package):
                if row["file"] not in content:
                    raise MegaSRError(f"{package} holds no {row['file']}: another release of the package?")
                name = row["photograph"]
                cv2.imwrite(str(written / f"{name}.png"), halve(content[row["file"]], row["file"]))
                (written / f"{name}.txt").write_text(row["tags"] + "\n")
                attribution.append((name, package, *licence_of(copyright_file, row["source"])))
        with (written / "ATTRIBUTION.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(attribution)
    return len(rows)


def main() -> None:
    """Read the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the photographs")
    parser.add_argument("--packages", type=Path, help="folder with the packages (.deb) instead of apt-get download")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as downloads, LIST.open(newline="") as file:
        if arguments.packages is None:
            download(sorted({row["package"] for row in csv.DictReader(file)}), Path(downloads))
        count = write_photographs(arguments.packages or Path(downloads), arguments.output)
    print(f"{count} photographs in {arguments.output}; who made them: ATTRIBUTION.csv")


if __name__ == "__main__":
    main()
