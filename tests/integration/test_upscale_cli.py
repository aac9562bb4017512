"""`megasr upscale` around a pipeline that enlarges by two; the last test runs the real one."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megasr import cli
from megasr.errors import UsageError
from megasr.images import read_image
from megasr.inference.upscale import (
    MADE_FILE,
    Job,
    Settings,
    _measure_speed,
    list_jobs,
    load_pipeline,
    restore_all,
    seconds_of,
    tile_grid,
)
from megasr.rng import numpy_generator
from tests.helpers.bicubic_pipeline import CRASH, DIE, INTERRUPT, BicubicPipeline


@pytest.fixture(autouse=True)
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    if "real_pipeline" not in request.node.name:
        monkeypatch.setattr("megasr.inference.pipeline.MegaSRPipeline", BicubicPipeline)
    BicubicPipeline.calls.clear()
    return BicubicPipeline.calls


def photo(path: Path, size: tuple[int, int] = (8, 6), first: tuple[int, int, int] = (0, 0, 0)) -> Path:
    pixels = numpy_generator(0, path.name).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[0, 0] = first
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def upscale(*words: str | Path) -> int:
    return cli.main(["upscale", "--checkpoint", "tiny", "--device", "cpu", *map(str, words)])


def made(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")


def keys(calls: list[dict]) -> list[str]:
    return [key for call in calls for key in call["keys"]]


def test_a_folder_keeps_its_tree_and_formats_and_is_not_done_twice(tmp_path, calls, capsys):
    for name in ("a.png", "sub/b.jpg", "sub/c.webp", "odd.tif"):
        photo(tmp_path / "in" / name)
    out = tmp_path / "out"
    assert upscale(tmp_path / "in", out, "--seed", 3, "--strength", "hed=0.5") == 0
    assert made(out) == ["a.png", "odd.tif", "sub/b.jpg", "sub/c.webp", MADE_FILE]
    assert capsys.readouterr().out.splitlines() == [
        str(out / n) for n in ("a.png", "odd.tif", "sub/b.jpg", "sub/c.webp")
    ]
    assert read_image(out / "sub/b.jpg").shape == (16, 12, 3)
    assert calls[0] == {"keys": ["a"], "prompt": "", "seed": 3, "guidance": {"hed": 0.5}}

    again = (tmp_path / "in", out, "--seed", 3, "--strength", "hed=0.5")
    calls.clear()
    assert upscale(*again) == 0
    assert "4 of 4 images are done already" in capsys.readouterr().err
    photo(tmp_path / "in/a.png", (4, 4))
    (out / "odd.tif").unlink()
    assert upscale(*again) == 0
    assert keys(calls) == ["a", "odd"]
    calls.clear()
    assert upscale(tmp_path / "in", out, "--seed", 4) == 0
    assert keys(calls) == ["a", "odd", "b", "c"]  # sizes in turn


def test_what_others_made_is_not_overwritten_unasked(tmp_path, calls, capsys):
    photo(tmp_path / "in/a.png")
    other = photo(tmp_path / "out/a.png")
    before = other.read_bytes()
    assert upscale(tmp_path / "in", tmp_path / "out") == 2
    assert "a.png: there already, and not as this command made it; --overwrite" in capsys.readouterr().err
    assert other.read_bytes() == before
    assert upscale(tmp_path / "in", tmp_path / "out", "--overwrite") == 0
    assert read_image(other).shape == (16, 12, 3)
    assert upscale(tmp_path / "in", tmp_path / "out") == 0
    assert len(calls) == 1


def test_a_run_that_died_before_its_file_appeared_makes_it_again(tmp_path, calls):
    photo(tmp_path / "in/a.png")
    upscale(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/a.png").unlink()
    (tmp_path / "out/a.png.123.part").write_bytes(b"half")
    with (tmp_path / "out" / MADE_FILE).open("a") as file:
        file.write('3\n{"name": "a.png"}\n{"name": "cut sho')  # damaged, and interrupted
    assert upscale(tmp_path / "in", tmp_path / "out") == 0
    assert len(calls) == 2
    assert made(tmp_path / "out") == ["a.png", MADE_FILE]


def test_bad_files_are_listed_and_the_rest_goes_on(tmp_path, capsys):
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/crash.png", first=CRASH)
    photo(tmp_path / "in/huge.png", (50, 50))
    (tmp_path / "in/torn.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:60])
    photo(tmp_path / "in/z.png")
    assert upscale(tmp_path / "in", tmp_path / "out", "--max-pixels", 2000, "--batch-size", 8) == 1
    assert made(tmp_path / "out") == ["a.png", MADE_FILE, "z.png"]
    says = capsys.readouterr().err
    for line in (
        "crash.png: ZeroDivisionError: division by zero",
        "huge.png: 50x50 px are more than 2000 px",
        "torn.png: ",
        "megasr: error: 3 of 5 images failed; they are listed above",
    ):
        assert line in says


def test_what_a_format_cannot_hold_is_said_before_it_is_restored(tmp_path, calls, capsys):
    photo(tmp_path / "in/wide.webp", (1, 8192))
    photo(tmp_path / "in/fits.webp", (1, 8191))
    assert upscale(tmp_path / "in", tmp_path / "out", "--tile", 0) == 1
    says = "out/wide.webp: 16384x2 px, but WEBP holds at most 16383 px a side; try --format png"
    assert says in capsys.readouterr().err
    assert keys(calls) == ["fits"]
    assert made(tmp_path / "out") == ["fits.webp", MADE_FILE]
    photo(tmp_path / "tall.jpg", (32751, 1))
    assert upscale(tmp_path / "tall.jpg", tmp_path / "sr.jpg", "--tile", 0) == 1
    assert "sr.jpg: 2x65502 px, but JPEG holds at most 65500 px a side" in capsys.readouterr().err


def test_a_name_that_cannot_be_printed_does_not_stop_the_run(tmp_path, monkeypatch):
    """UTF-8 as most terminals have it, and names of another encoding, as archives of old bring them."""
    for number, name in enumerate((b"caf\xe9.png", b"later.png")):
        photo(tmp_path / f"{number}.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr("sys.stdout", terminal)
    assert upscale(tmp_path, tmp_path / "out") == 0
    terminal.flush()
    assert terminal.buffer.getvalue().decode().splitlines() == [
        f"{tmp_path}/out/{n}" for n in (r"caf\udce9.png", "later.png")
    ]


def test_an_interrupted_run_goes_on(tmp_path, calls, capsys):
    photo(tmp_path / "in/a.png")
    second = photo(tmp_path / "in/b.png", first=INTERRUPT)
    photo(tmp_path / "in/c.png")
    assert upscale(tmp_path / "in", tmp_path / "out") == 130
    assert made(tmp_path / "out") == ["a.png", MADE_FILE]
    calls.clear()
    photo(second)
    assert upscale(tmp_path / "in", tmp_path / "out") == 0
    assert keys(calls) == ["b", "c"]


def test_images_of_one_size_are_restored_together(tmp_path, calls):
    for number, size in enumerate([(8, 8), (4, 4), (8, 8), (8, 8), (4, 4)]):
        photo(tmp_path / f"in/{number}.png", size)
    assert upscale(tmp_path / "in", tmp_path / "out", "--batch-size", 2) == 0
    assert [call["keys"] for call in calls] == [["0", "2"], ["3"], ["1", "4"]]


@pytest.mark.parametrize(("asked", "tiles"), [((), 2), (("--tile", 0), 1), (("--tile", 80), 2), (("--tile", 96), 1)])
def test_what_is_larger_than_what_the_prior_was_trained_on_is_in_tiles(asked, tiles, tmp_path, calls):
    photo(tmp_path / "in/a.png", (8, 48))
    assert upscale(tmp_path / "in", tmp_path / "out", *asked) == 0
    (options,) = ({name: value for name, value in call.items() if name == "tile"} for call in calls)
    assert options == ({"tile": asked[1]} if asked else {}), "the pipeline decides"
    grid = tile_grid(BicubicPipeline(), Settings("tiny", options=options), (8, 48))  # 96 px; the prior knows 64
    assert len(grid.columns.starts) == tiles


def test_images_in_tiles_are_restored_and_written_one_by_one(tmp_path, calls):
    for number in range(3):
        photo(tmp_path / f"in/{number}.png", (40, 8), first=INTERRUPT if number == 2 else (0, 0, 0))
    assert upscale(tmp_path / "in", tmp_path / "out", "--batch-size", 3) == 130
    assert [call["keys"] for call in calls] == [["0"], ["1"], ["2"]]
    assert made(tmp_path / "out") == ["0.png", "1.png", MADE_FILE]


def test_what_does_not_fit_into_memory_is_restored_in_smaller_tiles(tmp_path, calls, monkeypatch, capsys):
    restore = BicubicPipeline.__call__

    def scarce(self, image, **options):
        if (options.get("tile") or 1000) > 150 * len(image):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return restore(self, image, **options)

    monkeypatch.setattr(BicubicPipeline, "__call__", scarce)
    photo(tmp_path / "in/a.png", (300, 8))
    photo(tmp_path / "in/b.png", (300, 8))
    with pytest.warns(UserWarning, match=r"a\.png: not enough memory, going on with --tile 150"):
        assert upscale(tmp_path / "in", tmp_path / "out", "--tile", 0, "--batch-size", 2) == 0
    assert [(call["keys"], call["tile"]) for call in calls] == [(["a"], 150), (["b"], 150)]
    photo(tmp_path / "c.png", (120, 8))  # 240 px, and half of it is too small a tile
    assert upscale(tmp_path / "c.png", tmp_path / "sr.png", "--tile", 0) == 1
    assert "c.png: not enough memory, even in small tiles" in capsys.readouterr().err


def test_every_device_has_a_process_and_one_that_dies_harms_no_other(tmp_path, capsys):
    for number in range(6):
        photo(tmp_path / f"in/{number}.png", first=DIE if number == 1 else (0, 0, 0))
    assert upscale(tmp_path / "in", tmp_path / "out", "--devices", "cpu,cpu") == 1
    assert made(tmp_path / "out") == ["0.png", "2.png", "3.png", "4.png", "5.png", MADE_FILE]
    assert "1.png: the process of cpu died" in capsys.readouterr().err
    photo(tmp_path / "in/1.png")
    assert upscale(tmp_path / "in", tmp_path / "out", "--devices", "cpu,cpu") == 0
    assert "5 of 6 images are done already" in capsys.readouterr().err

    for number in range(6):
        photo(tmp_path / f"in/{number}.png", first=DIE)
    assert upscale(tmp_path / "in", tmp_path / "all", "--devices", "cpu,cpu") == 1
    says = capsys.readouterr().err
    assert says.count("the process of cpu died") == 2
    assert says.count("no device is left") == 4
    assert upscale(tmp_path / "in", tmp_path / "out", "--devices", "cpu,bad", "--overwrite") == 1
    assert "this device has no prior" in capsys.readouterr().err


def test_stopping_ends_the_processes(tmp_path):
    jobs = [[Job(photo(tmp_path / f"{n}.png"), tmp_path / "out" / f"{n}.png")] for n in range(4)]

    def interrupt(batch: object, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(restore_all(jobs, Settings("tiny"), ["cpu", "cpu"], interrupt))
    assert not multiprocessing.active_children()
    assert not list(tmp_path.rglob("*.part"))


def test_dry_run_with_the_real_pipeline_says_what_would_be_done_and_does_nothing(tmp_path, capsys):
    photo(tmp_path / "in/a.png", (4, 40))
    photo(tmp_path / "in/b.png", (90, 90))
    (tmp_path / "in/c\x1b[2J.png").write_bytes(b"?")
    photo(tmp_path / "in/d.webp", (1, 4096))
    words = (tmp_path / "in", tmp_path / "out", "--dry-run", "--max-pixels", 5000)
    assert upscale(*words) == 0
    a, b, c, d, count, memory = capsys.readouterr().out.splitlines()
    assert "40x4 to 160x16 px, 2 tiles" in a  # the tiny prior was trained on 128 px
    assert "90x90 px, more than --max-pixels 5000: refused" in b
    assert "c\\x1b[2J.png: cannot be read" in c  # what does nothing to a terminal
    assert d.endswith("d.webp: 16384x4 px, but WEBP holds at most 16383 px a side; try --format png: refused")
    assert count == "4 images, 4 to do"
    assert re.match(r"Memory: 0.0[23] GiB for the weights; ", memory)
    assert not (tmp_path / "out").exists()


def test_compare_writes_a_page_of_all_that_is_there(tmp_path, capsys):
    photo(tmp_path / "in/a.png", (16, 16))
    photo(tmp_path / "in/crash.png", (16, 16), CRASH)
    page = tmp_path / "page.html"
    assert upscale(tmp_path / "in", tmp_path / "out", "--compare", page) == 1
    assert '"key": "a.png"' in page.read_text()
    assert "crash" not in page.read_text()
    page.unlink()
    assert upscale(tmp_path / "in/a.png", tmp_path / "sr.jpg", "--compare", page) == 0
    assert '"key": "sr.jpg"' in page.read_text()


def targets(inputs: list[str], output: Path, ending: str | None = None) -> list[str]:
    return [job.target.relative_to(output.parent).as_posix() for job in list_jobs(inputs, output, ending)]


def test_files_folders_and_globs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/sub/b.JPG", "c.bmp", "d.gif"):
        photo(Path(name))
    out = Path("out")
    assert targets(["in"], out) == ["out/a.png", "out/sub/b.JPG"]
    assert targets(["in", "c.bmp", "d.gif"], out) == ["out/a.png", "out/sub/b.JPG", "out/c.bmp", "out/d.png"]
    assert targets(["in/**/*"], out, ".webp") == ["out/a.webp", "out/b.webp"]
    assert targets(["c.bmp"], Path("x/sr.tif")) == ["sr.tif"]
    assert targets(["c.bmp"], out) == ["out/c.bmp"]
    photo(Path("in/sr/a.png"))
    assert targets(["in"], Path("in/sr")) == ["sr/a.png", "sr/sub/b.JPG"]


@pytest.mark.parametrize(
    ("inputs", "output", "says"),
    [
        (["absent"], "out", "absent: no such file or folder"),
        (["*.xyz"], "out", r"\*\.xyz: matches no image"),
        (["empty"], "out", "empty: holds no image"),
        (["a.png"], "sr.jp2", r"sr\.jp2: must end in one of"),
        (["in"], "a.png", r"a\.png is a file"),
        (["in", "a.png"], "out", r"in/a\.png and a\.png would both be written to out/a\.png: rename one"),
        (["in", "in"], "out", r"in/a\.png is named twice"),
        (["in"], "in", r"in/a\.png would be written over an image"),
        (["a.png"], "a.png", "would be written over"),
    ],
)
def test_inputs_and_outputs_that_do_not_go_together(inputs, output, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(Path("in/a.png"))
    photo(Path("a.png"))
    Path("empty").mkdir()
    with pytest.raises(UsageError, match=says):
        list_jobs(inputs, Path(output))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--strength", "canny=1"), 2, "guidance strength of canny: the adapter was trained with hed, depth"),
        (("--strength", "hed"), 2, "--strength hed: write TYPE=NUMBER"),
        (("--strength", "hed=-1"), 2, "guidance strength of hed must be from 0 to 2, got -1.0"),
        (("--tile", "-1"), 2, "--tile is -1, must be greater than 0, or 0 for whole images"),
        (("--tags", "a cat"), 2, "trained without text, words do nothing"),
        (("--preset", "fast", "--steps", "3"), 2, "give one of them"),
        (("--compare", "folder"), 2, "--compare folder: name an HTML file"),
        (("--compare", "photo.png"), 2, "--compare photo.png: name an HTML file, which ends in .html"),
        (("--scale-factor", "nan"), 2, "--scale-factor is nan, must be a number greater than 0"),
        (("--strength", "hed=1,hed=0"), 2, "--strength names hed twice"),
        (("--device", "cuda:77"), 2, "--device cuda:77 cannot be used"),
    ],
)
def test_options_that_cannot_be_used(words, code, says, tmp_path, capsys):
    photo(tmp_path / "in/a.png")
    argv = ["upscale", str(tmp_path / "in"), str(tmp_path / "out"), "--checkpoint", "tiny", *words]
    assert cli.main(argv) == code
    assert says in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_before_anything_is_restored(tmp_path, calls, capsys):
    photo(tmp_path / "in/a.png")
    (tmp_path / "file").write_text("")
    assert upscale(tmp_path / "in", tmp_path / "file" / "out") == 1
    assert "cannot " in capsys.readouterr().err
    assert not calls


def test_the_real_pipeline_gives_files_what_it_gives_in_python(tmp_path):
    from megasr.inference.pipeline import MegaSRPipeline

    folder = tmp_path / "exported"
    pipeline = MegaSRPipeline.from_checkpoint("tiny")
    pipeline.save_pretrained(folder)
    paths = [photo(tmp_path / "in/a.png", (12, 10)), photo(tmp_path / "in/b.png", (8, 40))]
    words = ("--checkpoint", folder, "--steps", 1, "--seed", 5, "--color-fix", "wavelet", "--tile", 128)
    assert upscale(tmp_path / "in", tmp_path / "out", *words) == 0
    for path in paths:
        options = {"num_inference_steps": 1, "seed": 5, "color_fix": "wavelet", "tile": 128, "keys": [path.stem]}
        expected = pipeline(Image.open(path), output_type="np", **options).images[0]
        np.testing.assert_array_equal(read_image(tmp_path / "out" / path.name), expected)


@pytest.mark.parametrize(("slower", "says"), [(1, None), (1000, r"about (\d+ min|[\d.]+ h) on the CPU; with --preset")])
def test_how_long_it_takes_is_said_after_the_first_tiles_of_the_real_pipeline(
    slower, says, tmp_path, monkeypatch, capsys
):
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() * slower)  # as on a slower machine
    assert upscale(photo(tmp_path / "a.png", (12, 40)), tmp_path / "sr.png", "--steps", 9, "--guidance-scale", 1) == 0
    printed = capsys.readouterr().err
    assert (re.search(says, printed) is not None) if says else "on the CPU" not in printed


def test_the_time_of_the_real_pipeline_follows_from_its_steps_tiles_and_guidance():
    speeds = []
    settings = Settings("tiny", options={"num_inference_steps": 2, "tile": 128})
    pipeline = load_pipeline(settings, "cpu")

    def seconds(height, width, **options):
        return seconds_of(pipeline, replace(settings, options=settings.options | options), (height, width), 1e-4)

    assert seconds(32, 32, guidance_scale=1.0) == pytest.approx(1e-4 * 2 * 128**2)
    assert seconds(32, 80, guidance_scale=1.0) == pytest.approx(1e-4 * 2 * 128**2 * 3)  # 320 px in steps of 96
    words = {"guidance_scale": 2.0, "negative_prompt": "blur"}
    assert seconds(32, 32, **words, num_inference_steps=10) == pytest.approx(1e-4 * 20 * 128**2)
    assert seconds(16, 16, guidance_scale=1.0) == pytest.approx(1e-4 * 2 * 64**2)  # one that is no tile
    _measure_speed(pipeline, lambda same, speed: speeds.append(speed))
    started = time.perf_counter()
    pipeline(torch.rand(3, 32, 80), num_inference_steps=4, tile=128, guidance_scale=1.0)
    assert len(speeds) == 1
    assert 0 < speeds[0] * 128**2 * 3 < time.perf_counter() - started, "a step of four"
