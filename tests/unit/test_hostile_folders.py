"""A stranger's folder of weights is data: nothing in it runs, nothing is fetched for it, and little memory is taken."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megasr.errors import MegaSRError
from megasr.guidance.extractors import load_transformers
from megasr.prior import load_prior
from megasr.semantics.clip import TINY_CLIP, load_clip
from megasr.weights.local import TINY_FOLDER

PLUGIN = "import os\nos.mkdir('ran')\nclass Evil: pass\n"


class Command:
    """Pickled: makes the folder `ran` in the working directory of who unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def _nothing_runs_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    asked: list[str] = []

    def refuse(host: str, *rest: Any, **options: Any) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "ran").exists()
    assert asked == []


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    return shutil.copytree(TINY_FOLDER, tmp_path / "prior", copy_function=os.symlink)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return shutil.copytree(TINY_CLIP, tmp_path / "clip", copy_function=os.symlink)


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content | values))


def as_transformers(prior: Path, **config: Any) -> Path:
    """A text encoder that transformers reads, without its weights."""
    change(prior / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    shutil.rmtree(prior / "text_encoder")
    (prior / "text_encoder").mkdir()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    change(prior / "text_encoder" / "config.json", model_type="clip_text_model", vocab_size=9, **sizes, **config)
    return prior


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_in_place_of_safetensors_is_not_run(prior: Path, part: str, write: Callable) -> None:
    (prior / part / "diffusion_pytorch_model.safetensors").unlink()
    write({"weight": Command()}, prior / part / "diffusion_pytorch_model.bin")
    with pytest.raises(MegaSRError, match="cannot be read") as error:
        load_prior(str(prior))
    assert "weights_only" not in str(error.value)


def test_a_pickled_text_encoder_is_not_run(prior: Path) -> None:
    as_transformers(prior)
    torch.save({"weight": Command()}, prior / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(MegaSRError, match="holds more than tensors; only tensors are read"):
        load_prior(str(prior))


def test_classes_of_the_folder_are_not_imported(prior: Path) -> None:
    fingerprint = load_prior(str(TINY_FOLDER)).fingerprint()
    change(prior / "unet" / "config.json", auto_map={"AutoModel": "evil.Evil"}, trust_remote_code=True)
    change(prior / "scheduler" / "scheduler_config.json", _class_name="evil.Evil")
    change(prior / "model_index.json", _class_name="evil", unet=["evil", "Evil"], vae=["pipeline", "Evil"])
    for place in (".", "unet", "scheduler"):
        for name in ("evil.py", "pipeline.py"):
            (prior / place / name).write_text(PLUGIN)
    assert load_prior(str(prior)).fingerprint() == fingerprint
    for part, name in (("vae", "autoencoder"), ("unet", "denoiser")):
        change(prior / part / "config.json", _class_name="evil.Evil")
        with pytest.raises(MegaSRError, match=rf"the {name} is a evil\.Evil, but must be one of"):
            load_prior(str(prior))


def test_a_prior_leads_to_no_kernels_elsewhere(prior: Path) -> None:
    as_transformers(prior, attn_implementation="somebody/kernel")
    with pytest.raises(MegaSRError, match="attn_implementation 'somebody/kernel': what a folder does not hold"):
        load_prior(str(prior))


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("vision_cfg", {"timm_model_name": "hf-hub:somebody/network", "timm_model_pretrained": True}),
        ("text_cfg", {"hf_model_name": "somebody/network"}),
        ("text_cfg", {"hf_model_name": "plugin"}),
    ],
)
def test_a_clip_leads_to_no_network_elsewhere(clip: Path, tmp_path: Path, section: str, settings: dict) -> None:
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "evil.py").write_text(PLUGIN)
    change(tmp_path / "plugin" / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    path = clip / "open_clip_config.json"
    config = json.loads(path.read_text())["model_cfg"]
    change(path, model_cfg=config | {section: config[section] | settings})
    with pytest.raises(MegaSRError, match="_model_name '.*': what a folder does not hold is not fetched"):
        load_clip(str(clip))


def test_an_extractor_leads_to_no_network_elsewhere(tmp_path: Path) -> None:
    change(tmp_path / "config.json", architectures=["A"], backbone_config={"backbone": "hf-hub:somebody/network"})
    with pytest.raises(MegaSRError, match="backbone 'hf-hub:somebody/network': what a folder does not hold"):
        load_transformers(str(tmp_path), "depth", ["A"])


def test_merges_that_unpack_to_gigabytes_are_refused(prior: Path, clip: Path) -> None:
    bomb = gzip.compress(bytes(2**24))
    for path in (prior / "text_encoder" / "merges.txt.gz", clip / "merges.txt.gz"):
        path.unlink()
        path.write_bytes(bomb)
    for load, folder in ((load_prior, prior), (load_clip, clip)):
        with pytest.raises(MegaSRError, match="unpacks to more than 8388608 bytes"):
            load(str(folder))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "[]", "{", '{"a": ' * 50_000], ids=["deep", "list", "cut", "deep too"]
)
def test_a_config_that_is_none_is_one_line(prior: Path, content: str) -> None:
    (prior / "vae" / "config.json").unlink()
    (prior / "vae" / "config.json").write_text(content)
    with pytest.raises(MegaSRError, match="cannot be read: "):
        load_prior(str(prior))
