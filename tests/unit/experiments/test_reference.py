"""Reference numbers on the stand-in model: measured, kept, checked, refused when something has changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.reference.__main__ import main
from experiments.reference.measure import Workplace
from experiments.reference.records import Reference, read_reference, write_reference
from megasr.errors import MegaSRError
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from tests.helpers.tiny_study import TinyModule, tiny_components

RECIPE = (
    "model: {adapter: {width: 4}}\n"
    "data: {class_path: TinyData, init_args: {photos: 3}}\n"
    "trainer: {max_steps: 2, accelerator: cpu, devices: 1, log_every_n_steps: 1}\n"
)
OTHER = RECIPE.replace("width: 4", "width: 4, guidance: [canny]")
FAST = Protocol("fast", 1, WEIGHT_FREE_V1.metrics[:2])  # psnr_y, ssim_y
PLACE = Workplace(protocol=FAST, components=tiny_components())


def _call(folder: Path, *words: str) -> int:
    folders = [f"--{name}={folder / name}" for name in ("recipes", "references", "runs")]
    return main([*folders, *words], PLACE)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes with three seeds, measured in two calls."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "recipes" / "tiny").mkdir(parents=True)
    (folder / "recipes" / "tiny" / "plain.yaml").write_text(RECIPE)
    (folder / "recipes" / "tiny" / "guided.yaml").write_text(OTHER)
    assert _call(folder, "measure", "tiny/plain", "tiny/guided", "--seeds", "1") == 0
    assert _call(folder, "measure", "tiny/plain", "tiny/guided", "--seeds", "0", "1", "2") == 0
    return folder


@pytest.fixture
def place(measured: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(measured, tmp_path / "copy")
    return tmp_path / "copy"


def _file(folder: Path, name: str = "plain") -> Path:
    return folder / "references" / "tiny" / f"{name}.json"


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _edit_run(path: Path, change: Callable[[Reference], object]) -> None:
    """Change the rows or the platform of a reference, keeping the file consistent in itself."""
    reference = read_reference(path)
    change(reference)
    write_reference(reference, path)


def _shift(reference: Reference, metric: str, by: float, seed: int = 0) -> None:
    for row in reference.of_seed(seed).rows:
        row[metric] += by


def test_a_reference_says_what_was_measured_and_where(measured: Path) -> None:
    content = json.loads(_file(measured).read_text())
    assert content["seeds"] == [0, 1, 2]
    assert (content["steps"], content["protocol"]) == (2, "fast")
    assert set(content["fingerprints"]) == {"recipe", "protocol", "prior"}
    assert list(content["metrics"]) == ["psnr_y", "ssim_y"]
    for name, value in content["metrics"].items():
        rows = [row[name] for run in content["runs"] for row in run["rows"]]
        assert value["mean"] == pytest.approx(sum(rows) / len(rows))
        assert value["low"] < value["mean"] < value["high"]
    assert [row["key"] for row in content["bicubic"]] == [row["key"] for row in content["runs"][0]["rows"]]
    assert content["runs"][0]["rows"] != content["runs"][1]["rows"]
    for run in content["runs"]:
        assert run["train_s"] > 0
        assert {"cpu", "threads", "device", "versions"} <= set(run["platform"])
    assert not list(measured.rglob("*.part"))


def test_recorded_seeds_are_not_run_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _file(place).read_text()
    monkeypatch.setattr("ablations.execute.execute_run", None)
    assert _call(place, "measure", "tiny/plain", "--seeds", "1", "0") == 0
    assert _file(place).read_text() == before


def test_a_seed_is_added_beside_those_that_another_process_wrote(
    place: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _file(place).unlink()
    train = TinyModule.on_train_end

    def other_process_writes(module: TinyModule) -> None:
        shutil.copy(_file(measured), _file(place))
        train(module)

    monkeypatch.setattr(TinyModule, "on_train_end", other_process_writes)
    assert _call(place, "measure", "tiny/plain", "--seeds", "7") == 0
    assert read_reference(_file(place)).seeds == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda place: _rewrite(place, "max_steps: 2", "max_steps: 3"), r"recipe \(trainer.max_steps 2 -> 3\)"),
        (lambda place: _edit(_file(place), lambda c: c["fingerprints"].update(prior="old")), "prior"),
        (lambda place: _edit(_file(place), lambda c: c["bicubic"][0].update(psnr_y=3.0)), "evaluation images"),
    ],
    ids=["recipe", "prior", "images"],
)
def test_what_has_changed_is_refused_and_measured_anew(
    place: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], reason: str
) -> None:
    change(place)
    assert _call(place, "check", "tiny/plain") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(reason, error)
    assert _call(place, "measure", "tiny/plain", "--seeds", "5") == 0
    assert "its file is started anew" in capsys.readouterr().out
    assert read_reference(_file(place)).seeds == [5]


def _rewrite(place: Path, old: str, new: str) -> None:
    path = place / "recipes" / "tiny" / "plain.yaml"
    path.write_text(path.read_text().replace(old, new))


def test_a_comment_or_a_seed_in_the_recipe_changes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _rewrite(place, "model: {", "# a note\nmodel: {seed: 5, ")
    monkeypatch.setattr("ablations.execute.execute_run", None)
    assert _call(place, "measure", "tiny/plain", "--seeds", "0") == 0


def test_a_failed_run_is_named_and_the_others_go_on(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: TinyModule) -> None:
        if module.shift:
            raise MegaSRError("diverged")

    monkeypatch.setattr(TinyModule, "on_train_end", fail)
    assert _call(place, "measure", "tiny/guided", "tiny/plain", "--seeds", "3") == 1
    out, error = capsys.readouterr()
    assert "tiny/guided seed 3 failed: diverged" in out
    assert "not measured: tiny/guided seed 3" in error
    assert read_reference(_file(place)).seeds == [0, 1, 2, 3]
    assert read_reference(_file(place, "guided")).seeds == [0, 1, 2]


def test_a_check_on_the_same_platform_finds_equal_bits(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(place, "check", "tiny/plain", "--seed", "1") == 0
    assert "every number is equal to the last bit, on the platform of the record" in capsys.readouterr().out


def _elsewhere(reference: Reference) -> None:
    for run in reference.runs:
        run.platform["cpu"] = "another"


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda r: _shift(r, "ssim_y", 1e-12), 1, "deviates from its record in ssim_y, on the platform of the record"),
        (
            lambda r: [_elsewhere(r), _shift(r, "ssim_y", 1e-6)],
            0,
            "within what is allowed, on another platform",
        ),
        (lambda r: [_elsewhere(r), _shift(r, "psnr_y", 1.0)], 1, "in psnr_y, on another platform"),
        (lambda r: [_elsewhere(r), _keep_two(r), _shift(r, "ssim_y", 0.015)], 0, "agrees"),
        (lambda r: [_elsewhere(r), _keep_two(r), _shift(r, "ssim_y", 0.02)], 1, "in ssim_y"),
    ],
    ids=["last bit", "elsewhere", "elsewhere, too far", "two seeds", "two seeds, too far"],
)
def test_a_check_allows_what_the_platform_explains(
    place: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Reference], object], code: int, said: str
) -> None:
    _edit_run(_file(place), change)
    assert _call(place, "check", "tiny/plain") == code
    assert said in "".join(capsys.readouterr())


def _keep_two(reference: Reference) -> None:
    object.__setattr__(reference, "runs", reference.runs[:2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: c["metrics"]["ssim_y"].update(mean=0.99), "changed by hand: ssim_y"),
        (lambda c: c["runs"][0]["rows"][0].update(ssim_y=0.5), "changed by hand: ssim_y"),
        (lambda c: c.pop("runs"), "cannot be read as a reference .*delete it and measure again"),
    ],
    ids=["mean", "row", "no runs"],
)
def test_a_damaged_reference_is_named(place: Path, damage: Callable[[dict], object], said: str) -> None:
    _edit(_file(place), damage)
    with pytest.raises(MegaSRError, match=rf"plain\.json.*{said}"):
        read_reference(_file(place))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["measure", "tiny/plane"], "unknown recipe .*tiny/plane.*did you mean tiny/plain"),
        (["measure", "tiny/plain", "tiny/plain"], "named twice"),
        (["check", "tiny/plane"], "unknown reference .*did you mean tiny/plain"),
        (["check", "tiny/plain", "--seed", "9"], "no seed 9; measured: 0, 1, 2"),
        (["check"], "RECIPE"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    measured: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert _call(measured, *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error)
