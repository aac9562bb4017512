"""The photographs of the world: Qt's archives, debian/copyright, and real packages that are built here."""

from __future__ import annotations

import csv
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.world import photographs
from megasr.errors import MegaSRError

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2015 Somebody
License: GPL-3+

Files: src/cats/*
 src/dogs/rex.jpg
Copyright: 2016 Anna
           2017 Ben
License: CC-BY-SA-4.0
 The text of the licence.
"""


def rcc(files: dict[str, bytes], deflated: set[str] = frozenset()) -> bytes:
    """A Qt resource archive of version 3 with one folder, `pictures`."""
    names, data, nodes = b"", b"", b""

    def name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    nodes += struct.pack(">IHIIQ", 0, 2, 1, 1, 0)  # the root: one child, the first is node 1
    nodes += struct.pack(">IHIIQ", name("pictures"), 2, len(files), 2, 0)
    for path, content in files.items():
        nodes += struct.pack(">IHIIQ", name(path), 1 if path in deflated else 0, 0, len(data), 0)
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if path in deflated else content
        data += struct.pack(">I", len(stored)) + stored
    tree = 24
    return (
        b"qres"
        + struct.pack(">5I", 3, tree, tree + len(nodes), tree + len(nodes) + len(data), 0)
        + nodes
        + data
        + names
    )


def test_an_archive_of_qt_is_read_with_its_folders_plain_and_deflated() -> None:
    content = rcc({"Straße.webp": b"plain", "b.png": b"deflated" * 99}, {"b.png"})
    assert dict(photographs.resources(content)) == {
        "pictures/Straße.webp": b"plain",
        "pictures/b.png": b"deflated" * 99,
    }
    with pytest.raises(MegaSRError, match="qres"):
        dict(photographs.resources(b"PK\3\4" + content))


@pytest.mark.parametrize(
    ("source", "licence", "authors"),
    [
        ("src/birds/owl.webp", "GPL-3+", "2015 Somebody"),
        ("src/cats/tom.webp", "CC-BY-SA-4.0", "2016 Anna; 2017 Ben"),
        ("src/dogs/rex.webp", "CC-BY-SA-4.0", "2016 Anna; 2017 Ben"),  # listed as .jpg
        ("src/dogs/rexina.webp", "GPL-3+", "2015 Somebody"),
    ],
)
def test_the_last_paragraph_that_matches_says_the_licence(source: str, licence: str, authors: str) -> None:
    assert photographs.licence_of(COPYRIGHT, source) == (licence, authors)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package, `pets_1_all.deb`, and the list of what to take of it."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb, which builds Debian packages")
    root = tmp_path / "root"
    picture = np.random.default_rng(3).integers(0, 256, (512, 600, 3), dtype=np.uint8)
    png = cv2.imencode(".png", picture)[1].tobytes()
    files = {
        "DEBIAN/control": b"Package: pets\nVersion: 1\nArchitecture: all\nMaintainer: M <m@m.org>\nDescription: p\n",
        "usr/share/doc/pets/copyright": COPYRIGHT.encode(),
        "usr/share/pets/data.rcc": rcc({"tom.png": png}),
        "usr/share/pets/small.png": cv2.imencode(".png", picture[:100])[1].tobytes(),
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    subprocess.run(["dpkg-deb", "--build", root, tmp_path / "pets_1_all.deb"], check=True, capture_output=True)
    monkeypatch.setattr(photographs, "LIST", tmp_path / "list.csv")
    write_list(tmp_path, ("tom", "pets", "pictures/tom.png", "src/cats/tom.png", "cat, fur"))
    return tmp_path


def write_list(folder: Path, *rows: tuple[str, ...]) -> None:
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("photograph", "package", "file", "source", "tags"), *rows])


def test_photographs_are_halved_and_named_with_tags_and_authors(packages: Path) -> None:
    assert photographs.write_photographs(packages, packages / "out") == 1
    whole = np.random.default_rng(3).integers(0, 256, (512, 600, 3), dtype=np.uint8)
    halved = cv2.imread(str(packages / "out/tom.png"))
    assert halved.shape == (256, 300, 3)
    assert np.abs(halved - whole.reshape(256, 2, 300, 2, 3).mean((1, 3))).max() <= 0.5
    assert (packages / "out/tom.txt").read_text() == "cat, fur\n"
    rows = list(csv.reader((packages / "out/ATTRIBUTION.csv").open()))
    assert rows[1:] == [["tom", "pets", "CC-BY-SA-4.0", "2016 Anna; 2017 Ben"]]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("x", "fish", "a.png", "a.png", ""), r"holds no fish_\*.deb: download the packages"),
        (("x", "pets", "pictures/tim.png", "a.png", ""), "pets holds no pictures/tim.png"),
        (("x", "pets", "usr/share/pets/small.png", "a.png", ""), r"small.png: has \(100, 600\) px"),
        (("x", "pets", "usr/share/doc/pets/copyright", "a.png", ""), "copyright: cannot be decoded"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(packages: Path, row: tuple[str, ...], says: str) -> None:
    write_list(packages, row)
    with pytest.raises(MegaSRError, match=says):
        photographs.write_photographs(packages, packages / "out")
    assert not (packages / "out").exists()


def test_without_apt_the_packages_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MegaSRError, match="apt-get was not found: download the packages"):
        photographs.download(["pets"], tmp_path)


def test_the_shipped_list_names_every_photograph_once() -> None:
    rows = list(csv.DictReader((Path(photographs.__file__).with_suffix(".csv")).open()))
    assert len({row["photograph"] for row in rows}) == len({row["file"] for row in rows}) == len(rows) > 140
    assert all(row["tags"] and row["source"] for row in rows)
