"""`megasr evaluate` from the command line: files, comparisons, and what it refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from megasr.cli import main
from megasr.commands import evaluate as measuring
from megasr.commands.evaluate import _name, describe
from megasr.errors import UsageError
from megasr.evaluation.evaluator import Evaluation, read_evaluation
from megasr.evaluation.protocol import PROTOCOLS
from megasr.images import read_image, write_png

GOLDEN = Path(__file__).parents[1] / "golden"
SR, HQ = (str(GOLDEN / "images" / side) for side in ("sr", "hq"))


def table_row(path: Path, label: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_numbers_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("r.json", "r.csv", "r.md", "r.tex")]
    assert main(["evaluate", SR, "--hq", HQ, "--metrics", "ssim_y, psnr_y", "--labels", "mine", "--out", *files]) == 0
    stored = json.loads((GOLDEN / "metrics.json").read_text())["numbers"]["weight-free-v1"]
    found = read_evaluation(tmp_path / "r.json")
    assert {row["key"]: row["psnr_y"] for row in found.rows} == pytest.approx(
        {key: row["psnr_y"] for key, row in stored.items()}, rel=1e-4
    )
    assert {"commit", "versions", "device", "time", "weights"} <= set(found.provenance)
    assert found.provenance["versions"].keys() >= {"torch", "pyiqa"}
    printed = capsys.readouterr().out
    assert f"weight-free-v1 ({found.fingerprint}), 3 images" in printed
    assert f"psnr_y ↑ {found.means['psnr_y']:9.4f}  [{found.intervals['psnr_y'][0]:.4f}," in printed
    assert "fsim" not in printed
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [float(row["psnr_y"]) for row in rows] == [row["psnr_y"] for row in found.rows]
    assert "| mine     |        3 |" in (tmp_path / "r.md").read_text()
    assert r"\begin{tabular}" in (tmp_path / "r.tex").read_text()


def test_two_methods_are_compared_image_by_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path(HQ).iterdir():
        write_png(read_image(path), tmp_path / "perfect" / path.name)
    before, scores = tmp_path / "before.json", tmp_path / "scores.csv"
    measure = ["--hq", HQ, "--metrics", "psnr_y,gmsd"]
    assert main(["evaluate", SR, *measure, "--out", str(before), str(scores)]) == 0
    capsys.readouterr()
    against = ["--against", str(before), str(scores)]
    assert main(["evaluate", str(tmp_path / "perfect"), *measure, *against]) == 0
    printed = capsys.readouterr().out
    assert f"perfect minus {before}, image by image" in printed
    few = ("too few photographs", "no difference shown")  # of 3 images
    lines = [line.split() for line in printed.splitlines() if line.endswith(few)]
    assert [line[0] for line in lines] == ["psnr_y", "gmsd"]
    worst = min(read_evaluation(before).rows, key=lambda row: row["psnr_y"])
    gap = next(line for line in printed.splitlines() if "largest" in line and "psnr_y" in line)
    assert f"({worst['key']})" in gap
    mean, low, high = (float(text.strip("[,]")) for text in lines[0][1:4])
    assert low < mean < high
    largest, median = (float(gap.split(name)[1].split()[0]) for name in ("largest", "median"))
    assert largest == pytest.approx(80 - worst["psnr_y"], rel=0.01)
    assert low < median < largest


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([SR], "here are 3 images and fsim, gmsd, nlpd, psnr_y, ssim_y"),
        (["bicubic", "--lq", HQ], "3 images"),
        ([SR, "--metrics", "psnr_y"], "3 images and psnr_y"),
    ],
)
def test_correlations_of_too_few_images_are_refused_before_anything_is_measured(
    given: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "_evaluation", None)
    monkeypatch.setattr("megasr.inference.baselines.restore_folder", None)
    monkeypatch.setattr("megasr.commands.baselines.check_baselines", lambda methods, arguments: 1)
    assert main(["evaluate", *given, "--hq", HQ, "--correlations"]) == 2
    error = capsys.readouterr().err
    assert "--correlations needs two metrics per image and four images; " in error and says in error


def test_one_metric_of_many_images_cannot_be_correlated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write_png(read_image(next(Path(HQ).iterdir())), tmp_path / f"{number}.png")
    given = ["evaluate", str(tmp_path), "--hq", str(tmp_path), "--correlations", "--metrics"]
    assert main([*given, "psnr_y,gmsd"]) == 0
    monkeypatch.setattr(measuring, "_evaluation", None)
    assert main([*given, "psnr_y"]) == 2
    assert "four images; here are 4 images and psnr_y" in capsys.readouterr().err


def test_several_methods_stand_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path(HQ).iterdir():
        write_png(read_image(path), tmp_path / "perfect" / path.name)
    before, table, means = (tmp_path / "runs" / "base" / "test.json", tmp_path / "t.md", tmp_path / "t.csv")
    measure = ["--hq", HQ, "--metrics", "psnr_y"]
    assert main(["evaluate", SR, *measure, "--out", str(before)]) == 0
    assert main(["evaluate", str(before), str(tmp_path / "perfect"), *measure, "--out", str(table), str(means)]) == 0
    assert [table_row(table, name)[2][:7] for name in ("base", "perfect")] == ["<u>28.9", "**80.00"]
    assert table.read_text().splitlines()[0] in capsys.readouterr().out
    assert [row["method"] for row in csv.DictReader(means.open())] == ["base", "perfect"]
    assert main(["evaluate", str(before), str(tmp_path / "perfect"), *measure, "--against", str(before)]) == 0
    assert {"base minus", "perfect minus"} <= {
        " ".join(line.split()[:2]) for line in capsys.readouterr().out.splitlines()
    }
    assert main(["evaluate", str(before), "--out", str(tmp_path / "again.csv")]) == 0
    assert [row["key"] for row in csv.DictReader((tmp_path / "again.csv").open())] == ["bicubic", "jpeg", "noise"]
    for options, message in (
        ([str(before), *measure, "--strip", "_x"], "--hq, --metrics, --strip: nothing is measured"),
        ([str(before), str(before)], "methods of one name: base, base"),
        ([str(before), SR, "--hq", HQ, "--labels", "a"], "--labels names 1 methods for 2 SR"),
        ([str(before), SR, "--hq", HQ, "--out", "r.json"], "a .json holds one evaluation"),
        ([str(before), "--against", "published"], "needs --data"),
        ([str(before), SR, "--hq", HQ, "--protocol", "rgb-v1", "--metrics", "psnr_rgb"], "cannot be compared"),
    ):
        assert main(["evaluate", *options]) == 2
        assert message in capsys.readouterr().err


def test_published_rows_stand_beside_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("r.json", "r.md", "r.tex")]
    arguments = ["evaluate", SR, "--hq", HQ, "--metrics", "psnr,ssim", "--protocol", "whole-image-v1"]
    assert main([*arguments, "--data", "realsr-whole", "--against", "published", "--out", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    assert "3 images of realsr-whole" in printed
    assert "SeeSR" in printed
    assert "26.20" in printed  # D3SR's whole images, not the crops' 25.18
    assert "25.18" not in printed
    assert "benchmark_images" not in read_evaluation(files[0]).provenance  # how many these are is not published
    assert all("SeeSR" in path.read_text() for path in files[1:])
    again = ["evaluate", str(files[0]), str(files[0]), "--labels", "a", "b", "--out", str(tmp_path / "means.csv")]
    assert main([*again, "--against", "published"]) == 0  # the set was told when it was measured
    assert "SeeSR" in capsys.readouterr().out
    assert "SeeSR" in (tmp_path / "means.csv").read_text()


@pytest.mark.parametrize(
    ("sr", "name"),
    [("runs/v1.5", "v1.5"), ("v1.5.json", "v1.5"), ("runs/mine/sr", "mine"), ("runs/mine/test.json", "mine")],
)
def test_methods_are_called_after_their_folders(sr: str, name: str) -> None:
    assert _name(Path(sr)) == name


@pytest.mark.parametrize("count", [2, 3])
def test_a_benchmark_is_counted_by_name(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipelines import benchmarks

    benchmark = replace(benchmarks.get_benchmark("realsr"), count=count, protocol="weight-free-v1")
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"realsr": benchmark})
    for path in Path(SR).iterdir():
        write_png(read_image(path), tmp_path / "sr" / f"{path.stem}_LR4.png")
    arguments = ["evaluate", str(tmp_path / "sr"), "--hq", HQ, "--strip", "_LR4", "--metrics", "psnr_y"]
    known, unknown = tmp_path / "known.json", tmp_path / "unknown.json"
    assert main([*arguments, "--data", "realsr", "--out", str(known)]) == (2 if count < 3 else 0)
    printed = capsys.readouterr()
    assert ("3 images of realsr" in printed.out) == (count == 3)
    assert ("sr holds 3 images, but realsr is 2" in printed.err) == (count == 2)
    assert main([*arguments, "--out", str(unknown)]) == 0
    # The name of the set may be told later; it is counted as well, and does not change.
    assert main(["evaluate", str(unknown), "--data", "realsr", "--out", str(unknown)]) == (2 if count < 3 else 0)
    if count == 3:
        for file in (known, unknown):
            found = read_evaluation(file)
            assert (found.data, found.provenance["benchmark_images"]) == ("realsr", [3, 3])
        assert main(["evaluate", str(known), "--data", "realsr-whole"]) == 2
        assert "is of the set realsr, not of realsr-whole" in capsys.readouterr().err


def test_a_comparison_that_fails_does_not_lose_the_numbers(tmp_path: Path) -> None:
    measure = ["evaluate", SR, "--hq", HQ, "--metrics", "psnr_y", "--out", str(tmp_path / "r.json")]
    (tmp_path / "other.json").write_text("{}")
    assert main([*measure, "--against", str(tmp_path / "other.json")]) == 1
    assert read_evaluation(tmp_path / "r.json").means.keys() == {"psnr_y"}


def test_the_restored_images_know_their_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, again, table = tmp_path / "run", tmp_path / "again.json", tmp_path / "again.md"
    for path in Path(SR).iterdir():
        write_png(read_image(path), run / "sr" / path.name)
    measure = ["--hq", HQ, "--metrics", "psnr_y"]
    (run / "test.json").write_text("of another program")
    (run / "sr").rename(run / "other")
    assert main(["evaluate", str(run / "other"), *measure]) == 0  # `megasr test` has not written these
    (run / "other").rename(run / "sr")
    (run / "test.json").unlink()
    assert main(["evaluate", str(run / "sr"), *measure, "--out", str(run / "test.json")]) == 0
    monkeypatch.chdir(run / "sr")
    capsys.readouterr()
    assert main(["evaluate", ".", *measure, "--out", str(again), str(table)]) == 0
    assert "3/3" in capsys.readouterr().err
    low, high = read_evaluation(again).intervals["psnr_y"]
    assert table_row(table, "run")[1] == "3"
    assert f"[{low:.2f}, {high:.2f}]" in table.read_text()
    assert read_evaluation(again).provenance["made_by"]["time"] == read_evaluation(run / "test.json").provenance["time"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--metrics", "psnr"], 2, "did you mean psnr_y"),
        (["--protocol", "stablesr-crops"], 2, "did you mean stablesr-crops-v2, stablesr-crops-v1"),
        (["--data", "realsrr"], 2, "realsr"),
        (["--out", "r.xlsx"], 2, "the ending must be one of .json, .csv, .md, .tex"),
        (["--against", "published"], 2, "needs --data"),
        (["--against", "r.txt"], 2, "FILE.json"),
        (["--against", "none.json"], 2, "none.json: no such file"),
        (
            ["--data", "drealsr", "--protocol", "rgb-v1", "--metrics", "psnr_rgb", "--against", "published"],
            2,
            "no published numbers",
        ),
        (["--data", "drealsr", "--metrics", "psnr"], 2, "96x96 px; stablesr-crops-v1 measures 512x512 px"),
        (["--device", "cuda:99"], 2, "cuda:99"),
        (["--devices", "0"], 2, "devices is 0"),
        (["--protocol", "rgb-v1", "--metrics", "lpips", "--weights-dir", "nowhere"], 2, "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", SR, "--hq", HQ, *options]) == code
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("megasr: error:")]
    assert message in line


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_a_device_that_torch_refuses_is_one_line(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kind("not compiled with CUDA\nand the stack")

    monkeypatch.setattr("torch.empty", refuse)
    with pytest.raises(UsageError, match="--device cuda cannot be used: not compiled with CUDA$"):
        measuring.usable_device("cuda")


def test_what_was_found_is_described_line_by_line() -> None:
    lpips, protocol = "LPIPS_v0.1_alex-df73285e.pth", PROTOCOLS["whole-image-v1"]
    found = Evaluation(
        protocol.name,
        protocol.fingerprint,
        rows=({"key": "a", "psnr": 24.0}, {"key": "b", "psnr": 26.0}),
        means={"psnr": 25.0},
        intervals={"psnr": (24.5, 25.5)},
        set_values={"kid": -0.01, "fid": 100.25},
        skipped={"lpips": "lacks its file"},
        provenance={"weights": {lpips: "0" * 16}},
    )
    *lines, caveat, altered = describe(found)
    assert lines == [
        f"whole-image-v1 ({protocol.fingerprint}), 2 images",
        "  psnr  ↑   25.0000  [24.5000, 25.5000]",
        "  fid   ↓  100.2500",
        "  kid   ↓   -0.0100",
        "  lpips   skipped: lacks its file",
        "intervals: 95 %, over photographs",
    ]
    assert caveat.startswith("note: fid of 2 images is biased")
    assert altered == f"note: {lpips} is not the published file of this name, by its sha256"
    without = replace(found, intervals={}, set_values={"kid": -0.01}, provenance={})
    assert [line.split()[0] for line in describe(without)[1:]] == ["psnr", "kid", "lpips"]


def test_missing_weights_are_listed_or_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.hub

    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arguments = ["evaluate", SR, "--hq", HQ, "--protocol", "whole-image-v1", "--metrics", "psnr,lpips,niqe,fid"]
    try:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        for name in ("alexnet-owt-7be5be79.pth", "LPIPS_v0.1_alex-df73285e.pth", "niqe_modelparameters.mat"):
            assert f"{name} (https://" in error
        assert main([*arguments, "--missing", "skip"]) == 0
        printed = capsys.readouterr().out
        assert "psnr  ↑" in printed
        assert "lpips   skipped: lacks alexnet-owt-7be5be79.pth" in printed
        assert main(["evaluate", SR, "--protocol", "whole-image-v1", "--missing", "skip"]) == 2
        assert "no metric of whole-image-v1 can be taken: psnr: needs hq" in capsys.readouterr().err
    finally:
        torch.hub.set_dir(before)
