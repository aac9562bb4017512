"""Folders with an adapter: what comes back is what was saved, and nothing else is taken for it."""

import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.utils import save_image

from megasr import plugins
from megasr.cli import main
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extract import ExtractorConfig
from megasr.guidance.registry import GUIDANCE
from megasr.inference.pipeline import MegaSRPipeline
from megasr.networks.config import AdapterConfig
from megasr.training.config import SamplerConfig
from megasr.training.folders import SHIPPED
from megasr.training.last_checkpoint import LAST, PREVIOUS
from tests.helpers.inference import loud_pipeline, photograph
from tests.helpers.training import fit, make_batch, make_module, prior_folder

SAMPLER = SamplerConfig(num_steps=2, solver="dpm++", guidance_scale=2.0, guidance_interval=(0.0, 0.8))


@pytest.fixture(scope="module")
def pipeline():
    return loud_pipeline(sampler=SAMPLER, extractors=ExtractorConfig())


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_what_comes_back_is_what_was_saved(pipeline, folder):
    again, lq = MegaSRPipeline.from_pretrained(folder), photograph(8, 8)
    assert torch.equal(again(lq, output_type="pt").images, pipeline(lq, output_type="pt").images)
    assert again.module.sampler == SAMPLER and again.guidance == pipeline.guidance
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter.safetensors", "config.json"]
    trained = {name for name, p in pipeline.module.named_parameters() if p.requires_grad}
    assert set(load_file(folder / "adapter.safetensors")) == trained
    card = (folder / "README.md").read_text()
    assert "canny, saliency, superpixel" in card and pipeline.module.prior_fingerprint in card


def test_with_the_prior_inside_nothing_else_is_needed(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "adapter", include_prior=True)
    config = tmp_path / "adapter" / "config.json"
    config.write_text(config.read_text().replace(prior_folder(), "/nowhere"))
    again = MegaSRPipeline.from_pretrained(tmp_path / "adapter", torch_dtype=torch.bfloat16)
    assert again.module.prior_fingerprint == pipeline.module.prior_fingerprint and again.dtype == torch.bfloat16


def test_another_prior_is_refused(folder):
    with pytest.raises(MegaSRError, match="trained on the prior .*, but the loaded prior is"):
        MegaSRPipeline.from_pretrained(folder, prior=prior_folder(seed=1))


def test_a_folder_with_something_else_is_not_replaced(pipeline, folder, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="photos exists and is not an exported adapter"):
        pipeline.save_pretrained(tmp_path / "photos")
    pipeline.save_pretrained(folder)  # its own kind is
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds more than an exported adapter \(notes.txt\)"):
        pipeline.save_pretrained(folder)
    (folder / "notes.txt").unlink()
    assert (tmp_path / "photos" / "a.txt").read_text() == "mine"


def test_damaged_folders_say_what_is_wrong(folder, tmp_path):
    with pytest.raises(MegaSRError, match="not an exported adapter, .*; from_checkpoint is for checkpoints"):
        MegaSRPipeline.from_pretrained("tiny-one-step")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.ckpt").touch()
    with pytest.raises(MegaSRError, match="run: not an exported adapter, .*; a run's checkpoint is .*run/last.ckpt"):
        MegaSRPipeline.from_pretrained(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(MegaSRError, match="format is 99"):
        MegaSRPipeline.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(MegaSRError, match="cannot read the exported adapter"):
        MegaSRPipeline.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter.safetensors").write_bytes(b"cut off")
    with pytest.raises(MegaSRError, match="cannot read the exported adapter"):
        MegaSRPipeline.from_pretrained(folder)


def test_the_command_exports_the_shipped_adapter(tmp_path, capsys):
    assert main(["export", "tiny", str(tmp_path / "out")]) == 0
    assert MegaSRPipeline.from_pretrained(tmp_path / "out").scale_factor == 4
    assert main(["export", str(tmp_path / "absent"), str(tmp_path / "b")]) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_a_run_is_exported_from_its_newest_checkpoint_that_is_whole(tmp_path):
    shipped = SHIPPED["tiny"].read_bytes()
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    (run / PREVIOUS).write_bytes(shipped)
    (run / LAST).write_bytes(shipped[:-100])
    with pytest.warns(UserWarning, match="last.ckpt is damaged"):
        assert main(["export", str(run), str(out)]) == 0
    assert MegaSRPipeline.from_pretrained(out).scale_factor == 4


def test_weights_that_have_changed_are_refused(folder):
    path = folder / "adapter.safetensors"
    state, written = load_file(path), path.read_bytes()
    name = max(state, key=lambda name: state[name].numel())
    start = written.index(state[name].numpy().tobytes())
    path.write_bytes(written[:start] + b"damage" + written[start + 6 :])
    with pytest.raises(MegaSRError, match=f"{path} was changed after it was written"):
        MegaSRPipeline.from_pretrained(folder)


def test_weights_without_a_digest_are_read_and_checked_by_their_kind(folder):
    path, config = folder / "adapter.safetensors", folder / "config.json"
    state = load_file(path)
    older = {name: value for name, value in json.loads(config.read_text()).items() if name != "sha256"}
    config.write_text(json.dumps(older))
    assert MegaSRPipeline.from_pretrained(folder).scale_factor == 4
    name = min(state)
    for value, says in ((state[name].long(), "holds int64"), (state[name] * torch.nan, "that are not finite")):
        save_file({**state, name: value}, path)
        with pytest.raises(MegaSRError, match=f"{name} {says}|{name} holds numbers {says}"):
            MegaSRPipeline.from_pretrained(folder)


def test_one_that_was_trained_with_a_cache_of_maps_is_read(folder):
    config = json.loads((folder / "config.json").read_text())
    config["module"]["extractors"]["cache"] = "runs/maps"
    (folder / "config.json").write_text(json.dumps(config))
    assert MegaSRPipeline.from_pretrained(folder).module.networks.config == ExtractorConfig()


_OWN = """
from megasr.guidance.registry import GuidanceType, register_guidance
register_guidance(GuidanceType("grey", "edge", 1, "lq", "", formula=lambda image, keys: image.mean(1, keepdim=True)))
"""


def test_the_module_of_a_users_own_part_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(GUIDANCE, "_entries", dict(GUIDANCE._entries))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MEGASR_IMPORT", "")
    (tmp_path / "parts").mkdir()
    file = tmp_path / "parts" / "own_grey.py"
    file.write_text(_OWN)

    def forget():
        os.environ["MEGASR_IMPORT"] = ""
        plugins._imported.discard("own_grey")
        sys.modules.pop("own_grey", None)
        for name in ("grey", "oracle_grey"):
            GUIDANCE._entries.pop(name, None)

    save_image(photograph(8, 8), tmp_path / "lq.png")
    run, folder = tmp_path / "last.ckpt", tmp_path / "adapter"
    try:
        assert main(["--import", str(file), "params", "--prior", "tiny", "--guidance", "grey"]) == 0
        module = make_module(adapter=AdapterConfig(guidance=("canny", "grey"), saft_width=8))
        assert module.own_modules == {"guidance type grey": "own_grey"}
        fit(module, make_batch(), 1).save_checkpoint(run)
        MegaSRPipeline.from_checkpoint(run).save_pretrained(folder)
        for checkpoint in (run, folder):
            forget()
            upscale = ["upscale", str(tmp_path / "lq.png"), str(tmp_path / "sr.png"), "--checkpoint", str(checkpoint)]
            assert main(upscale) == 2
            says = f"{checkpoint} uses guidance type grey: needs megasr --import own_grey, or the path of its file"
            assert says in capsys.readouterr().err
            assert main(["--import", str(file), *upscale]) == 0
    finally:
        forget()
