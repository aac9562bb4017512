"""The comparison page as a file: every pixel is in it, what cannot be compared is refused, nothing is half-written."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megasr import cli
from megasr.commands.compare import default_labels
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.comparison import Method, encode, write_page
from megasr.evaluation.evaluator import Evaluation
from megasr.evaluation.protocol import get_protocol
from megasr.images import read_image, write_png
from megasr.rng import numpy_generator

PICTURE = re.compile(r'<script type="text/plain" id="picture-(\d+)-(\d+)" data-type="(image/\w+)">([^<]*)</script>')
PROTOCOL = get_protocol("weight-free-v1")
KEYS = ("a", "b")


def noise(*key: str, height: int = 24, width: int = 32) -> np.ndarray:
    return numpy_generator(0, *key).integers(0, 256, (height, width, 3), dtype=np.uint8)


def folder_of(path: Path, height: int = 24, width: int = 32, keys: tuple[str, ...] = KEYS) -> dict[str, Path]:
    """Key -> file of a folder of noise that is made here."""
    files = {key: path / f"{key}.png" for key in keys}
    for key, file in files.items():
        write_png(noise(path.name, key, height=height, width=width), file)
    return files


def method(label: str, files: dict[str, Path]) -> Method:
    rows = tuple({"key": key, "psnr_y": 20.0 + i} for i, key in enumerate(files))
    return Method(label, Evaluation(PROTOCOL.name, PROTOCOL.fingerprint, rows, {"psnr_y": 20.5}), files)


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def pictures_of(page: Path) -> dict[tuple[int, int], np.ndarray]:
    """(image, source) -> pixels of every picture in a page."""
    return {
        (int(image), int(source)): np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))
        for image, source, _, text in PICTURE.findall(page.read_text())
    }


def test_every_pixel_is_in_the_page(tmp_path: Path) -> None:
    columns = [folder_of(tmp_path / "lq", 6, 8), folder_of(tmp_path / "x"), folder_of(tmp_path / "hq")]
    page = tmp_path / "new" / "page.html"
    written = write_page(page, [method("x", columns[1])], lq=columns[0], hq=columns[2])
    assert written == page.stat().st_size
    shown = pictures_of(page)
    assert set(shown) == {(image, source) for image in range(2) for source in range(3)}
    for (image, source), pixels in shown.items():
        np.testing.assert_array_equal(pixels, read_image(columns[source][KEYS[image]]))
    data = data_of(page)
    assert [source["label"] for source in data["sources"]] == ["lq", "x", "hq"]
    assert data["images"] == [{"key": key, "width": 32, "height": 24} for key in KEYS]
    assert data["methods"][0]["scores"] == {"psnr_y": [20.0, 21.0]}
    assert data["webpQuality"] is None


def test_pictures_are_lossless_webp_and_png_where_they_are_larger_than_webp_can_hold() -> None:
    for pixels, form in (
        (noise("picture", height=64, width=64), "image/webp"),
        (np.zeros((16384, 1, 3), np.uint8), "image/png"),
    ):
        media_type, content = encode(pixels)
        assert media_type == form
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), pixels)
    assert encode(pixels, 50)[0] == "image/png"


def test_lossy_pictures_are_smaller_and_the_page_says_so(tmp_path: Path) -> None:
    methods = [method("x", folder_of(tmp_path / "x", 64, 64))]
    whole, small = tmp_path / "whole.html", tmp_path / "small.html"
    write_page(whole, methods)
    write_page(small, methods, webp_quality=30)
    assert small.stat().st_size < whole.stat().st_size
    assert data_of(small)["webpQuality"] == 30
    assert not np.array_equal(pictures_of(small)[0, 0], pictures_of(whole)[0, 0])


def test_differences_are_paired_and_directions_are_the_protocols(tmp_path: Path) -> None:
    keys = tuple("abcdefgh")
    files = folder_of(tmp_path / "x", keys=keys)
    base, gain = np.arange(20.0, 28.0), np.array([1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.0])
    evaluations = []
    for scores in (base, base + gain):
        rows = tuple({"key": key, "psnr_y": x, "gmsd": -x} for key, x in zip(keys, scores.tolist(), strict=True))
        means = {"psnr_y": float(scores.mean()), "gmsd": -float(scores.mean())}
        evaluations.append(Evaluation(PROTOCOL.name, PROTOCOL.fingerprint, rows, means))
    page = tmp_path / "page.html"
    # The second evaluation in another order: pairs are made by name.
    evaluations[1] = replace(evaluations[1], rows=evaluations[1].rows[::-1])
    write_page(page, [Method(str(i), e, files) for i, e in enumerate(evaluations)])
    data = data_of(page)
    found = data["methods"][1]["differences"]["psnr_y"]
    mean, (low, high) = found["mean"], found["ends"]
    assert found["verdict"] == "better"
    assert data["methods"][1]["differences"]["gmsd"]["verdict"] == "better"
    assert mean == pytest.approx(1.0)
    assert 0.8 <= low < 1.0 < high <= 1.2  # as narrow as the differences, not as the scores
    assert data["metrics"] == [{"name": "psnr_y", "higher": True}, {"name": "gmsd", "higher": False}]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    x, y = method("x", folder_of(tmp_path / "x")), method("y", folder_of(tmp_path / "y"))
    larger = folder_of(tmp_path / "larger", 48, 64)
    other_shape = folder_of(tmp_path / "other", 6, 6)
    more = folder_of(tmp_path / "more", keys=("a", "b", "c"))
    measured_otherwise = replace(y, evaluation=replace(y.evaluation, fingerprint="00000000"))
    page = tmp_path / "page.html"
    for methods, others, says in [
        ([], {}, "at least one folder"),
        ([x, replace(y, label="x")], {}, "change 'x'"),
        ([x, replace(y, label="hq")], {}, "change 'hq'"),
        ([replace(x, label=" ")], {}, "change ' '"),
        ([x, measured_otherwise], {}, "y was measured under weight-free-v1 00000000, x under"),
        ([x, method("y", more)], {}, "unexpected: c"),
        ([x], {"hq": more}, "unexpected: c"),
        ([x, method("y", larger)], {}, "'a' is 32x24 px in x but 64x48 px in y"),
        ([x], {"lq": larger}, "lq of 'a' is 64x48 px, larger than its sr of 32x24 px"),
        ([x], {"lq": other_shape}, "another shape"),
    ]:
        with pytest.raises(UsageError, match=re.escape(says)):
            write_page(page, methods, **others)
    damaged = folder_of(tmp_path / "damaged")
    damaged["b"].write_bytes(damaged["b"].read_bytes()[:-200])
    with pytest.raises(MegaSRError, match=r"b\.png"):
        write_page(page, [method("x", damaged)])
    assert not list(tmp_path.glob("page.html*"))


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["a/sr", "b/sr", "c"], ["a/sr", "b/sr", "c"]),
        (["x/a/sr", "y/a/sr", "b/sr"], ["x/a/sr", "y/a/sr", "b/sr"]),
        (["set/hq", "b"], ["set/hq", "b"]),
    ],
)
def test_labels_are_as_short_as_is_distinct(folders: list[str], labels: list[str], tmp_path: Path) -> None:
    assert default_labels([tmp_path / folder for folder in folders]) == labels


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, height, width in (("a/sr", 64, 64), ("b/sr", 64, 64), ("hq", 64, 64), ("lq", 16, 16)):
        folder_of(tmp_path / name, height, width, keys=("one_LR", "two_LR") if name == "lq" else ("one", "two"))
    a, b, hq, lq, out = (str(tmp_path / name) for name in ("a/sr", "b/sr", "hq", "lq", "page.html"))
    command = ["compare", a, b, "--hq", hq, "--lq", lq, "--strip", "_LR", "--metrics", "psnr_y", "--out", out]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert f"{out}: 2 images, 2 methods" in printed.out
    assert "MiB" in printed.out
    assert "measuring a/sr" in printed.err
    data = data_of(Path(out))
    assert [source["label"] for source in data["sources"]] == ["lq", "a/sr", "b/sr", "hq"]
    psnr = data["methods"][1]["scores"]["psnr_y"][0]
    difference = (noise("sr", "one", height=64, width=64).astype(float) - noise("hq", "one", height=64, width=64)) / 255
    y = difference @ [65.481, 128.553, 24.966]
    assert psnr == pytest.approx(10 * np.log10(255**2 / (y**2).mean()), abs=0.05)  # PSNR on Y of limited range

    # Without hq nothing of this protocol can be measured: pictures only.
    assert cli.main(["compare", a, b, "--labels", "A", "B", "--out", out]) == 0
    assert "not taken: psnr_y" in capsys.readouterr().out
    data = data_of(Path(out))
    assert data["metrics"] == []
    assert dict(data["skipped"])["psnr_y"] == "needs hq"
    assert [method["label"] for method in data["methods"]] == ["A", "B"]

    folder_of(tmp_path / "a/sr", keys=("three",))
    (tmp_path / "folder.html").mkdir()
    for options, says in [
        ([b], "lacks three"),
        ([b, "--labels", "A"], "--labels names 1 methods for 2 folders"),
        ([b, "--labels", "A", "A"], "change 'A'"),
        ([a], "given twice"),
        ([b, "--webp-quality", "101"], "--webp-quality is 101"),
        ([b, "--out", b], "name an HTML file"),
        ([b, "--out", str(tmp_path / "folder.html")], "folder.html is a folder: name an HTML file"),
    ]:
        assert cli.main(["compare", a, *options, *([] if "--out" in options else ["--out", out])]) == 2
        assert says in capsys.readouterr().err


def test_folders_of_runs_and_what_is_unfinished_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, test = tmp_path / "study", tmp_path / "test"
    folder_of(study / "done" / "sr")
    folder_of(study / "begun" / "sr", keys=("a",))
    folder_of(test / "sr")
    folder_of(test / "hq")
    for file in (study / "study.json", test / ".sr_of_test", tmp_path / "config.yaml"):
        file.touch()
    for given, says in [
        (study, "is the folder of a study: no run of it is finished yet"),
        (study / "done" / "sr", "done is an unfinished run of a study: give `megasr study run` again"),
        (test / "sr", "test is of a test that did not end: run `megasr test` again"),
        (tmp_path / "sr", "is a run that was not tested yet: `megasr test` writes"),
    ]:
        assert cli.main(["compare", str(given), "--out", str(tmp_path / "page.html")]) == 2
        assert says in capsys.readouterr().err
    (study / "done" / "metrics.json").touch()
    (test / "test.json").touch()
    folder_of(study / "bicubic" / "hq")
    for given, says in [
        (study, f"name folders of its runs, such as {study / 'done' / 'sr'} --hq {study / 'bicubic' / 'hq'}"),
        (study / "done", f"done is the folder of a run: its pictures are in {study / 'done' / 'sr'}"),
        (test, f"test is the folder of a test: its pictures are in {test / 'sr'}"),
    ]:
        assert cli.main(["compare", str(given), "--out", str(tmp_path / "page.html")]) == 2
        assert says in capsys.readouterr().err
    command = ["compare", str(study / "done" / "sr"), str(test / "sr"), "--hq", str(test / "hq"), "--metrics", "psnr_y"]
    assert cli.main([*command, "--out", str(tmp_path / "page.html")]) == 0
