"""`megasr shards` as a person meets it: pack, run it again, verify, info, index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import webdataset

from megasr import cli
from tests.helpers.packing import make_photos, photo
from tests.helpers.shard_sets import encoded, pixels


def test_pack_verify_info(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = make_photos(tmp_path / "photos")
    (photos / "broken.png").write_bytes(b"junk")
    pack = ["shards", "pack", "photos", "--output", "set", "--licence", "CC0", "--samples-per-shard=4", "--workers=1"]
    assert cli.main(pack) == 0
    out, err = capsys.readouterr()
    assert "set: 11 samples in 3 shards, 0.0 MiB\n" in out
    assert "1 of 12 images dropped: 1 damaged image; each is listed in set/dropped.csv" in out
    assert re.search(r"looking at images .* 12/12 ", err)
    assert re.search(r"writing shards .* 11/11 ", err)
    assert cli.main(pack) == 0
    out, err = capsys.readouterr()
    assert "set: 11 samples in 3 shards" in out
    assert "writing shards" not in err, "a finished set is not read"

    assert cli.main(["shards", "verify", "set"]) == 0
    assert "nothing is damaged, missing or there twice" in capsys.readouterr().out

    assert cli.main(["shards", "info", "set"]) == 0
    rows = dict(re.split(r" {2,}", line.strip(), maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["samples"] == "11"
    assert rows["field txt"] == "1"
    assert rows["mean image size"] == "24x20 px (of 11 images)"
    assert rows["licence"] == "CC0"
    assert rows["damaged image"] == "1"

    # The command in the manifest makes the same set.
    again = rows["command"].split()
    assert again[0] == "megasr"
    assert cli.main([*again[1:], "--output", "again", "--workers", "1"]) == 0
    tars = sorted(path.name for path in Path("set").glob("*.tar"))
    assert [Path("set", name).read_bytes() for name in tars] == [Path("again", name).read_bytes() for name in tars]


def test_verify_prints_every_finding_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(tmp_path / "photos")
    assert cli.main(f"shards pack {tmp_path}/photos --output {tmp_path}/set --licence CC0 --workers 1".split()) == 0
    tar = tmp_path / "set" / "shard-000000.tar"
    image = photo(tmp_path / "photos", "b/v1.2").read_bytes()
    tar.write_bytes(tar.read_bytes().replace(image, image[:-9] + b"x" + image[-8:]))
    capsys.readouterr()
    assert cli.main(["shards", "verify", str(tmp_path / "set"), "--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert "damaged sample  shard-000000.tar  b/v1.2  png is not what was packed\n" in out
    assert re.search(r"^damaged sample  1$", out, re.MULTILINE)
    assert re.search(r"^wrong sha256    1$", out, re.MULTILINE)
    assert "megasr: error: " in err
    assert "2 findings" in err


def test_bake_verify_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_photos(tmp_path / "photos")
    assert cli.main(f"shards pack {tmp_path}/photos --output {tmp_path}/set --licence CC0 --workers 1".split()) == 0
    bake = f"shards bake {tmp_path}/set --crop-size 16 --maps canny --workers 1 --variants".split()
    baked = f"{tmp_path}/set/baked/realesrgan_strong-x4-16px"
    for variants in ("1", "2"):
        assert cli.main([*bake, variants]) == 0
        out, err = capsys.readouterr()
        assert f"{baked}: {variants} variants, {11 * int(variants)} samples in {variants} shards" in out
        assert re.search(rf"baking +{11 * int(variants)}/{11 * int(variants)}", err)
    assert cli.main(["shards", "verify", baked, "--workers", "1"]) == 0
    assert cli.main(["shards", "info", baked]) == 0
    assert "field map.canny.png  22" in capsys.readouterr().out
    assert cli.main([*bake, "1"]) == 2
    assert "holds 2 variants already, 1 would lose some" in capsys.readouterr().err


def test_index_shards_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number}", "png": encoded(pixels(number)), "txt": "tree"})
    assert cli.main(["shards", "index", str(tmp_path), "--licence", "MIT", "--workers", "1"]) == 0
    assert "3 samples in 2 shards" in capsys.readouterr().out
    assert cli.main(["shards", "verify", str(tmp_path), "--workers", "1"]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("pack {0}/absent --output {0}/set --licence CC0", "absent: no such folder"),
        ("pack {0}/photos --output {0}/set", "required: --licence"),
        ("pack {0}/photos --output {0}/set --licence=", "argument --licence: is empty"),
        ("index {0} --licence=", "argument --licence: is empty"),
        ("pack {0}/photos --output {0}/set --licence CC0 --workers 0", "--workers must be at least 1, got 0"),
        ("pack {0}/photos --output {0}/set --licence CC0 --min-size -1", "min_size_px must be"),
        ("pack {0}/photos --output {0}/set --licence CC0 --map canny", "--map canny: should be NAME=FOLDER"),
        ("pack {0}/photos --output {0}/set --licence CC0 --map a=x", "x is no folder"),
        ("pack {0}/photos --output {0}/set --licence CC0 --map A.b={0}", "'A.b' is not the name of a guidance type"),
        (
            "pack {0}/photos --output {0}/set --licence CC0 --map canny={0}",
            "canny is extracted from lq, and maps beside",
        ),
        ("index {0} --licence CC0", "holds no .tar"),
    ],
)
def test_what_cannot_be_used_exits_with_2(
    options: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "photos")
    assert cli.main(["shards", *options.format(tmp_path).split()]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert not (tmp_path / "set").exists()


def test_info_and_verify_of_what_is_no_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["shards", "info", str(tmp_path)]) == 1
    assert "manifest.json: no such file" in capsys.readouterr().err
    assert cli.main(["shards", "verify", str(tmp_path), "--workers", "1"]) == 1
    assert "no manifest" in capsys.readouterr().out
