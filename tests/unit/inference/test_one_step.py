"""An adapter trained in one step, with a LoRA on the prior: exported, loaded, restored, in tiles and in bf16."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

from megasr import cli
from megasr.errors import UsageError
from megasr.inference.pipeline import MegaSRPipeline
from megasr.training.checkpoint import adapter_parameters
from megasr.training.last_checkpoint import CheckpointFiles
from tests.helpers.inference import photograph
from tests.helpers.losses import ONE_STEP, one_step
from tests.helpers.training import fit, make_batch

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_step")
    module = one_step({"l1": 1.0, "vsd": 0.1}, lora=2)
    for name, parameter in adapter_parameters(module).items():  # a LoRA whose effect can be seen
        torch.nn.init.normal_(parameter, std=0.05) if ".lora_B." in name else None
    fit(module, make_batch(), 1, plugins=[CheckpointFiles()]).save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def test_an_export_restores_as_the_checkpoint_does(checkpoint: Path, tmp_path: Path) -> None:
    trained, lq = MegaSRPipeline.from_checkpoint(checkpoint), photograph(8, 8)
    trained.save_pretrained(tmp_path / "adapter")
    loaded = MegaSRPipeline.from_pretrained(tmp_path / "adapter")
    expected = trained(lq, output_type="pt").images
    assert torch.equal(loaded(lq, output_type="pt").images, expected)
    assert loaded.module.sampler == ONE_STEP
    with torch.no_grad():
        for name, parameter in loaded.module.named_parameters():
            parameter.zero_() if ".lora_B." in name else None
    assert not torch.equal(loaded(lq, output_type="pt").images, expected), "the LoRA takes no part"


def test_in_half_precision_and_in_tiles(checkpoint: Path) -> None:
    pipeline, lq = MegaSRPipeline.from_checkpoint(checkpoint), photograph(24, 24)
    whole = pipeline(lq, output_type="pt").images
    tiled = pipeline(lq, tile=32, tile_overlap=8, output_type="pt").images
    half = pipeline.to(dtype=torch.bfloat16)(lq, output_type="pt").images
    assert whole.shape == tiled.shape == half.shape
    assert (whole - half).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"preset": "fast"}, r"preset='fast': the adapter was trained to restore in 1; leave it out"),
        ({"num_inference_steps": 4}, r"num_inference_steps=4: the adapter was trained to restore in 1; leave it out"),
    ],
)
def test_other_numbers_of_steps_are_refused(checkpoint: Path, tmp_path: Path, asked: dict, message: str) -> None:
    trained, lq = MegaSRPipeline.from_checkpoint(checkpoint), photograph(8, 8)
    trained.save_pretrained(tmp_path / "adapter")
    for pipeline in (trained, MegaSRPipeline.from_pretrained(tmp_path / "adapter")):
        with pytest.raises(UsageError, match=message):
            pipeline(lq, **asked)
    assert trained(lq, num_inference_steps=1).images


def test_the_command_says_how_long_it_takes_and_names_no_preset(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() * 10_000)  # as on a slower machine
    save_image(torch.rand(3, 24, 24), tmp_path / "photo.png")
    command = ["upscale", "--checkpoint", str(checkpoint), "--tile", "32", str(tmp_path / "photo.png")]
    assert cli.main([*command, str(tmp_path / "sr.png")]) == 0
    said = capsys.readouterr().err
    assert "this takes about" in said and "--preset" not in said
    assert (tmp_path / "sr.png").is_file()
