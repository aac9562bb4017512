"""`test` in one, two and three processes: real gloo processes, forked from this one, which has imported Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from data_pipelines.datamodules import PhotoDataModule
from megasr.evaluation import evaluator, metrics
from megasr.evaluation.evaluator import Evaluation, read_evaluation
from megasr.evaluation.metrics import FEATURES
from megasr.training import protocol_metrics
from megasr.training.config import ObjectiveConfig
from megasr.training.module import MegaSRModule
from megasr.training.protocol_metrics import ProtocolMetrics
from tests.helpers.evaluation_sets import Enlarger, NamedPictures, picture, quiet_trainer
from tests.helpers.training import make_module

KINDS = ("hq", "lq", "sr")  # of the pictures that a test writes
KEYS = [f"{name}/{number}" for name in ("street", "harbour") for number in range(3)] + ["lake"]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec")


def several(folder: Path, devices: int, callback: ProtocolMetrics) -> lightning.Trainer:
    return quiet_trainer(folder, callback, devices=devices, strategy="ddp_fork" if devices > 1 else "auto")


def measured(
    folder: Path, devices: int, callback: ProtocolMetrics, module: Enlarger | MegaSRModule, checkpoint: Path | None
) -> tuple[Evaluation, list[Any]]:
    """The evaluation by some processes, and what Lightning logged."""
    # A network takes images one by one: in a larger batch its convolutions round differently.
    data = NamedPictures(KEYS, batch_size=1 if checkpoint else 2)
    logged = several(folder, devices, callback).test(module, datamodule=data, ckpt_path=checkpoint, verbose=False)
    return read_evaluation(folder / "test.json"), list(logged)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that does something: its gates are not zero."""
    path = tmp_path_factory.mktemp("checkpoint") / "adapter.ckpt"
    module, generator = make_module(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    trainer = quiet_trainer(path.parent, lightning.Callback())
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ProtocolMetrics, Enlarger | MegaSRModule, Path | None]:
    """A network and formulas, or a distance of sets, whose features are gathered as well; pixels stand for them."""
    if request.param == "network":
        return ProtocolMetrics(), make_module(), checkpoint
    monkeypatch.setattr(metrics, "describe_missing", lambda *_: "")
    monkeypatch.setattr(
        evaluator, "create_features", lambda *_: lambda image: torch.from_numpy(image).flatten()[:FEATURES].double()
    )
    return ProtocolMetrics("whole-image-v1", ["psnr", "fid"]), Enlarger(), None


@pytest.mark.filterwarnings("ignore:fid of 7 images")
@pytest.mark.parametrize(("devices", "settings"), [(2, "fid"), (3, "network")], indirect=["settings"])
def test_the_numbers_do_not_depend_on_who_measures(
    devices: int, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, logged_alone = measured(tmp_path / "1", 1, *settings)
    write = protocol_metrics.write_png

    def write_once(image: Any, path: Path) -> None:
        assert not path.exists(), f"{path} was written twice"
        write(image, path)

    monkeypatch.setattr(protocol_metrics, "write_png", write_once)
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / protocol_metrics.MARK.format("sr")).touch()
    for key in ("old", KEYS[-1]):  # left by an interrupted test
        write(picture(key), tmp_path / "n" / "sr" / f"{key}.png")
    together, logged = measured(tmp_path / "n", devices, *settings)
    assert alone.keys == tuple(KEYS)
    assert together.rows == alone.rows, "to the last bit, in the order of the set"
    assert (together.means, together.intervals) == (alone.means, alone.intervals)
    assert together.set_values == alone.set_values
    assert bool(alone.set_values) == (devices == 2)
    assert logged == logged_alone
    assert together.provenance["checkpoint"] == alone.provenance["checkpoint"]
    written, expected = files(tmp_path / "n"), files(tmp_path / "1")
    assert (
        written.keys()
        == expected.keys()
        == {
            "test.json",
            "test.csv",
            *(protocol_metrics.MARK.format(kind) for kind in KINDS),
            *(f"{kind}/{key}.png" for kind in KINDS for key in alone.keys),
        }
    )
    assert all(written[name] == expected[name] for name in expected if name != "test.json")


def test_a_process_that_fails_ends_the_test_without_numbers(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=f"sr of '{KEYS[3]}' has 1 non-finite values"):
        several(tmp_path, 2, ProtocolMetrics()).test(
            Enlarger(diverges_at=KEYS[3]), datamodule=NamedPictures(KEYS, 1), verbose=False
        )
    left = {name for name in files(tmp_path) if "/" not in name}
    assert left == {protocol_metrics.MARK.format(kind) for kind in KINDS}


def test_the_validation_loss_counts_every_image_once(tmp_path: Path) -> None:
    """Three images in batches of two: two processes take two each, one of them twice."""
    losses = []
    for devices in (1, 2):
        module = make_module(objective=ObjectiveConfig(validation_timesteps=1))
        data = PhotoDataModule(crop_size_px=32, batch_size=2, eval_samples=3)
        (logged,) = several(tmp_path, devices, lightning.Callback()).validate(module, datamodule=data, verbose=False)
        losses.append(logged["val/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # batches of another size are rounded differently
