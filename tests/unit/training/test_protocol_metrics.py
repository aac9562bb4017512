"""ProtocolMetrics in one process: what it measures, writes and refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import WandbLogger

from megasr import cli
from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluation, Evaluator, read_evaluation
from megasr.evaluation.protocol import get_protocol
from megasr.images import from_uint8, read_image, write_png
from megasr.training.protocol_metrics import ProtocolMetrics
from tests.helpers.evaluation_sets import Enlarger, NamedPictures, NamelessTruth, picture, quiet_trainer
from tests.helpers.metric_weights import write_metric_weights

KEYS = ["b/1", "a", "c"]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def measure(folder: Path, callback: ProtocolMetrics | None = None, **given: Any) -> Evaluation:
    """Test a module on a set and read test.json."""
    module, data = given.pop("module", None) or Enlarger(), given.pop("data", None) or NamedPictures(KEYS)
    ckpt_path = given.pop("ckpt_path", None)
    trainer = quiet_trainer(folder, callback or ProtocolMetrics(), **given)
    trainer.test(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False, verbose=False)
    return read_evaluation(folder / "test.json")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with made-up weights of NIQE and FID, and none anywhere else on this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    write_metric_weights(tmp_path / "weights", {"niqe_modelparameters.mat", "pt_inception-2015-12-05-6726825d.pth"})
    return tmp_path / "weights"


def test_names_that_are_not_utf8_are_written_as_they_are(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert measure(tmp_path, data=NamedPictures([name])).keys == (name,)
    assert b"caf\xe9," in (tmp_path / "test.csv").read_bytes()


def test_what_is_measured_is_written_and_can_be_measured_again(tmp_path: Path) -> None:
    trainer, module, data = quiet_trainer(tmp_path, ProtocolMetrics()), Enlarger(), NamedPictures(KEYS)
    (logged,) = trainer.test(module, datamodule=data, verbose=False)
    found = read_evaluation(tmp_path / "test.json")
    assert found.keys == tuple(KEYS)
    assert found.data is None
    assert found.get_protocol() is get_protocol("weight-free-v1")
    assert logged == {f"test/{name}": pytest.approx(mean, rel=1e-6) for name, mean in found.means.items()}
    assert found.intervals.keys() == found.means.keys()

    assert sorted(str(path.relative_to(tmp_path / "sr")) for path in (tmp_path / "sr").rglob("*.*")) == [
        "a.png",
        "b/1.png",
        "c.png",
    ]
    evaluator = Evaluator(get_protocol("weight-free-v1"))
    for row in found.rows:
        sr, hq = read_image(tmp_path / "sr" / f"{row['key']}.png"), picture(row["key"])
        assert evaluator.rows(from_uint8(sr)[None], from_uint8(hq)[None], [row["key"]]) == [row]
        assert np.array_equal(read_image(tmp_path / "hq" / f"{row['key']}.png"), hq)
    restored, truth, given = (str(tmp_path / kind) for kind in ("sr", "hq", "lq"))
    page = str(tmp_path / "page.html")
    assert cli.main(["compare", restored, "--hq", truth, "--lq", given, "--metrics", "psnr_y", "--out", page]) == 0
    with (tmp_path / "test.csv").open() as file:
        assert [float(line["psnr_y"]) for line in csv.DictReader(file)] == [row["psnr_y"] for row in found.rows]


def test_the_record_says_what_was_tested(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    trainer = quiet_trainer(tmp_path, ProtocolMetrics())
    trainer.test(Enlarger(), datamodule=NamedPictures(KEYS), verbose=False)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    content = hashlib.sha256((tmp_path / "x.ckpt").read_bytes()).hexdigest()
    first = measure(tmp_path).provenance
    second = measure(tmp_path, ckpt_path=tmp_path / "x.ckpt", module=Enlarger(seed=4)).provenance
    assert (first["seed"], second["seed"]) == (3, 4)
    assert first["config"] != second["config"]
    assert first["checkpoint"] is None
    assert second["checkpoint"] == {"path": str(tmp_path / "x.ckpt"), "sha256": content}
    configured = ProtocolMetrics()
    configured.config = {"data": {"batch_size": 1}}
    third = measure(tmp_path, configured, ckpt_path=tmp_path / "x.ckpt").provenance
    assert third["config"] not in (first["config"], second["config"])
    assert not [warning for warning in recwarn if "ckpt_path" in str(warning.message)]
    with pytest.warns(UserWarning, match="no --ckpt_path: this measures an untrained adapter"):
        measure(tmp_path, configured)


def test_settings_choose_what_is_measured(tmp_path: Path, weights: Path) -> None:
    def columns(**settings: Any) -> tuple[list[str], set[str]]:
        found = measure(tmp_path, ProtocolMetrics(**settings))
        return list(found.means), set(found.skipped)

    assert columns(protocol="rgb-v1", metrics=["psnr_rgb"]) == (["psnr_rgb"], set())
    assert columns(metrics=["gmsd", "psnr_y"]) == (["psnr_y", "gmsd"], set())
    asked = {"protocol": "whole-image-v1", "metrics": ["niqe", "psnr"]}
    assert columns(**asked, missing="skip") == (["psnr"], {"niqe"})
    with pytest.raises(MegaSRError, match="niqe_modelparameters"):
        columns(**asked)
    assert columns(**asked, weights_dir=str(weights)) == (["psnr", "niqe"], set())
    assert (tmp_path / "sr").is_dir()
    assert measure(tmp_path / "other", ProtocolMetrics(save_images=False)).keys == tuple(KEYS)
    assert not list((tmp_path / "other").glob("[slh][rq]"))


def test_a_set_without_hq_is_measured_without_reference(tmp_path: Path, weights: Path) -> None:
    callback = ProtocolMetrics("whole-image-v1", weights_dir=str(weights), missing="skip")
    found = measure(tmp_path, callback, data=NamelessTruth(KEYS))
    assert [list(row) for row in found.rows] == [["key", "niqe"]] * 3
    assert found.skipped["psnr"] == "needs hq"
    assert sorted(path.name for path in tmp_path.glob("[slh][rq]")) == ["lq", "sr"]


def test_a_distance_of_sets_is_taken_and_comes_with_its_caveat(tmp_path: Path, weights: Path) -> None:
    trainer = quiet_trainer(tmp_path, ProtocolMetrics("whole-image-v1", ["fid", "psnr"], str(weights)))
    with pytest.warns(UserWarning, match="fid of 3 images is biased"):
        (logged,) = trainer.test(Enlarger(), datamodule=NamedPictures(KEYS), verbose=False)
    found = read_evaluation(tmp_path / "test.json")
    assert found.set_values == {"fid": pytest.approx(logged["test/fid"])}
    assert list(found.provenance["weights"]) == ["pt_inception-2015-12-05-6726825d.pth"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": NamedPictures(["a", "b", "a"])}, "repeated: a"),
        ({"data": NamedPictures(["a", "b/../../c"])}, "'b/../../c' cannot be written"),
        ({"data": NamedPictures(["a", "/b"])}, "'/b' cannot be written"),
        ({"limit_test_batches": 1}, "limit_test_batches leaves images out"),
        ({"callback": ProtocolMetrics(metrics=["psnr_y"]), "data": NamelessTruth(KEYS)}, "psnr_y compares with hq"),
        ({"data": NamelessTruth(KEYS)}, "no metric of weight-free-v1 can be computed"),
    ],
)
def test_what_can_be_refused_is_refused_before_an_image_is_restored(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    measure(tmp_path, data=NamedPictures(["before"]))
    module = Enlarger()
    with pytest.raises(UsageError, match=says):
        measure(tmp_path, module=module, **settings)
    assert not module.restored
    assert read_evaluation(tmp_path / "test.json").keys == ("before",)
    assert (tmp_path / "sr" / "before.png").is_file()


def test_loaders_without_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="eval_keys"):
        quiet_trainer(tmp_path, ProtocolMetrics()).test(Enlarger(), NamedPictures(KEYS).test_dataloader())


def test_an_image_that_was_not_announced_stops_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = NamedPictures(KEYS)
    monkeypatch.setattr(data, "eval_keys", lambda: ["a", "b/1", "d"])
    with pytest.raises(MegaSRError, match="not in the evaluation set of the data module: c"):
        measure(tmp_path, data=data)


@pytest.mark.parametrize(
    ("protocol", "metrics", "says"),
    [
        ("weight-fre-v1", None, "did you mean"),
        ("weight-free-v1", ["psnry"], "did you mean"),
        ("weight-free-v1", [], "evaluation.metrics is empty"),
    ],
)
def test_names_that_cannot_be_used_are_refused_when_it_is_made(
    protocol: str, metrics: list[str] | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        ProtocolMetrics(protocol, metrics)


def test_sr_that_is_not_finite_stops_the_test_and_leaves_no_numbers(tmp_path: Path) -> None:
    measure(tmp_path)
    with pytest.raises(MegaSRError, match="sr of 'c' has 1 non-finite"):
        measure(tmp_path, module=Enlarger(diverges_at="c"))
    assert not list(tmp_path.glob("test.*")), "not those of the earlier test either: its pictures are gone"


def pictures(folder: Path, kind: str = "sr") -> set[str]:
    """Every file below sr/."""
    return {path.relative_to(folder / kind).as_posix() for path in (folder / kind).rglob("*") if path.is_file()}


@pytest.mark.parametrize("save_images", [True, False])
def test_an_earlier_test_is_replaced_as_a_whole(save_images: bool, tmp_path: Path) -> None:
    with pytest.raises(MegaSRError, match="non-finite"):
        measure(tmp_path, module=Enlarger(diverges_at="z"), data=NamedPictures(["old/1", "a.png/b", "z"]))
    assert pictures(tmp_path) == {"old/1.png", "a.png/b.png"}, "what an interrupted test leaves"
    (tmp_path / "sr" / "old" / "2.png.71.part").touch()  # ... and a killed one
    assert measure(tmp_path, ProtocolMetrics(save_images=save_images)).keys == tuple(KEYS)
    for kind in ("sr", "lq", "hq"):
        assert pictures(tmp_path, kind) == ({f"{key}.png" for key in KEYS} if save_images else set())


@pytest.mark.parametrize("kind", ["sr", "lq", "hq"])
def test_pictures_of_another_origin_are_not_cleared(kind: str, tmp_path: Path) -> None:
    if kind != "sr":  # what older versions left: sr only
        measure(tmp_path)
        shutil.rmtree(tmp_path / kind)
        (tmp_path / f".{kind}_of_test").unlink()
    write_png(picture("1"), tmp_path / kind / "1.png")
    with pytest.raises(UsageError, match=rf"{kind} first, and this one was not written by a test: move it away"):
        measure(tmp_path)
    assert (tmp_path / kind / "1.png").is_file()
    if kind != "sr":
        measure(tmp_path, ProtocolMetrics(save_images=False))
        assert (tmp_path / kind / "1.png").is_file()


def test_other_files_beside_the_pictures_and_behind_links_stay(tmp_path: Path) -> None:
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    for folder in (run, theirs):
        measure(folder, data=NamedPictures(["1"]))
    (run / "sr" / "notes.txt").touch()
    (run / "sr" / "link").symlink_to(theirs / "sr")
    measure(run, data=NamedPictures(["2"]))
    assert pictures(run) == {"2.png", "notes.txt"}
    assert pictures(theirs) == {"1.png"}
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "sr").symlink_to(theirs / "sr")
    with pytest.raises(UsageError, match="not written by a test"):
        measure(linked)


def test_every_benchmark_set_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for name, key in (("realsr", "a"), (None, "b"), ("drealsr", "c")):
        data = NamedPictures([key])
        if name is not None:
            data.benchmark = name
        quiet_trainer(tmp_path, ProtocolMetrics()).test(Enlarger(), datamodule=data, verbose=False)
    for name, key in (("realsr", "a"), (None, "b"), ("drealsr", "c")):
        folder = tmp_path / (name or "")
        found = read_evaluation(folder / "test.json")
        assert (found.data, found.keys) == (name, (key,))
        assert pictures(folder) == {f"{key}.png"}
        assert (folder / "test.csv").is_file()


class RecordingWandb(WandbLogger):
    """W&B without W&B."""

    def __init__(self) -> None:
        super().__init__(offline=True)
        self.logged: list[dict[str, Any]] = []

    @property
    def experiment(self) -> Any:
        return None

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.logged.append({**metrics, "step": step})

    def finalize(self, status: str) -> None:
        """Nothing."""


def test_wandb_gets_one_row_per_image_and_the_means_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = RecordingWandb()
    trainer = quiet_trainer(tmp_path, ProtocolMetrics(metrics=["psnr_y"]), logger=logger)
    trainer.test(Enlarger(), datamodule=NamedPictures(KEYS), verbose=False)
    rows = json.loads(next(tmp_path.rglob("test.json")).read_text())["rows"]
    images, means = logger.logged
    assert images["test/images"].columns == ["key", "psnr_y"]
    assert images["test/images"].data == [[row["key"], row["psnr_y"]] for row in rows]
    assert (images["test/image_count"], images["step"]) == (3, 0)
    assert set(means) == {"test/psnr_y", "epoch", "step"}
