"""Where weights are looked for, what is said of those that are not here, and that altered files are refused."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megasr import weights
from megasr.errors import MegaSRError
from megasr.files import file_sha256
from megasr.weights import MANIFEST, PublishedFile, Weight, local

CONTENT = b"weights" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ONE = Weight("one", "a test", ("somebody/one",), "MIT", (PublishedFile("one.pth", len(CONTENT), SHA256),))
TWO = Weight(
    "two",
    "a test",
    ("somebody/two", "https://example.org/two/"),
    "CC-BY-NC-4.0",
    (
        PublishedFile("config.json"),
        PublishedFile("deep/model.safetensors", sha256=SHA256[:8], instead=PublishedFile("deep/pytorch_model.bin")),
    ),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for weights, and two weights more."""
    monkeypatch.setenv("MEGASR_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setitem(MANIFEST, "one", ONE)
    monkeypatch.setitem(MANIFEST, "two", TWO)
    return tmp_path / "weights"


def put(folder: Path, *names: str, content: bytes = CONTENT) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def cache_with(mirror: str, folder: Path, names: list[str]) -> Path:
    """A Hugging Face cache that holds one snapshot of `mirror`."""
    repository = folder / f"models--{mirror.replace('/', '--')}"
    snapshot = put(repository / "snapshots" / "0123abcd", *names)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    return snapshot


@pytest.mark.parametrize("mirror", weights.SD21_BASE)
def test_any_mirror_in_the_cache_is_found(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd21 = MANIFEST["sd21-base"]
    unsized = replace(sd21, files=tuple(replace(file, size=None) for file in sd21.files))
    monkeypatch.setitem(MANIFEST, "sd21-base", unsized)
    snapshot = cache_with(mirror, tmp_path, [file.name for file in sd21.files])
    assert weights.find_local("sd21-base", tmp_path) == snapshot
    assert weights.find_local(mirror, tmp_path) == snapshot
    (snapshot / "unet/config.json").unlink()
    assert weights.find_local("sd21-base", tmp_path) is None
    assert weights.find_local(mirror, tmp_path) == snapshot


@pytest.mark.parametrize("name", ["sd21-base", "one", "somebody/something", "no hub id at all", "/absolute/folder", ""])
def test_absent_weights_are_none(name: str, tmp_path: Path) -> None:
    assert weights.find_local(name, tmp_path) is None


def test_the_own_folder_goes_before_the_hub_cache(home: Path, tmp_path: Path) -> None:
    snapshot = cache_with("somebody/one", tmp_path / "hub", ["one.pth", "another.pth"])
    assert weights.find_local("one", tmp_path / "hub") == snapshot / "one.pth"
    put(home / "one", "one.pth")
    assert weights.find_local("one", tmp_path / "hub") == home / "one" / "one.pth"


def test_several_files_are_a_folder_and_all_are_needed(home: Path, tmp_path: Path) -> None:
    put(home / "two", "config.json")
    assert weights.find_local("two") is None
    lacks = re.escape(f"two is not on this machine ({home}/two lacks deep/model.safetensors)")
    with pytest.raises(MegaSRError, match=lacks):
        weights.require("two")
    cached = cache_with("somebody/two", tmp_path / "hub", ["config.json", "deep/model.safetensors"])
    assert weights.find_local("two", tmp_path / "hub") == cached  # half of it here, all of it there
    put(home / "two", "deep/pytorch_model.bin", content=b"the older format")
    assert weights.require("two") == weights.find_local("two", tmp_path / "hub") == home / "two"


def test_a_path_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mine", "hed.pth")
    monkeypatch.chdir(tmp_path)
    assert weights.find_local("mine/hed.pth") == weights.require("mine/hed.pth") == Path("mine/hed.pth")
    assert weights.require(str(tmp_path / "mine")) == tmp_path / "mine"


def test_weights_of_metrics_are_found_where_torch_has_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    name = "niqe_modelparameters.mat"
    put(tmp_path / "torch" / "hub" / "pyiqa", name)
    assert weights.find_local(name) == tmp_path / "torch" / "hub" / "pyiqa" / name
    put(home / name, name)
    assert weights.find_local(name) == home / name / name


@pytest.mark.parametrize(("content", "says"), [(CONTENT[:-1], "is truncated: has 699 of 700 bytes"), (CONTENT * 2, "")])
def test_another_size_is_an_error_at_once(content: bytes, says: str, home: Path) -> None:
    put(home / "one", "one.pth", content=content)
    with pytest.raises(MegaSRError, match=f"one.pth {says or 'is another file: has 1400 of 700 bytes'}; run `megasr"):
        weights.find_local("one")


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_missing_weight_names_mirrors_command_and_licence(name: str) -> None:
    weight, message = MANIFEST[name], str(weights.missing_weight(name))
    for part in (*weight.mirrors, weight.elsewhere, weight.licence, f"`megasr weights fetch {name}`"):
        assert part in message
    assert ("(non-commercial)" in message) == weight.non_commercial
    assert "\n" not in message


@pytest.mark.parametrize("weight", list(MANIFEST.values()), ids=lambda weight: weight.name)
def test_every_entry_is_complete(weight: Weight) -> None:
    assert weight.mirrors
    assert weight.licence
    assert weight.files
    for file in (form for listed in weight.files for form in listed.forms):
        assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", file.sha256)
        assert file.size is None or file.size > 0
    assert len(weight.files) < 2 or all(mirror.endswith("/") for mirror in weight.mirrors if "://" in mirror)


def test_a_metric_s_weights_are_under_the_licence_of_who_publishes_the_same_bytes() -> None:
    """torchmetrics ships LPIPS's heads: they are not pyiqa's, and nothing forbids their commercial use."""
    package = Path(importlib.util.find_spec("torchmetrics").origin).parent
    head = MANIFEST["LPIPS_v0.1_alex-df73285e.pth"]
    assert file_sha256(package / "functional" / "image" / "lpips_models" / "alex.pth") == head.files[0].sha256
    assert (head.licence, head.non_commercial) == ("BSD-2-Clause", False)
    for name, licence in (
        ("DISTS_weights-f5e65c96.pth", "MIT"),
        ("pt_inception-2015-12-05-6726825d.pth", "Apache-2.0"),
        ("musiq_koniq_ckpt-e95806b9.pth", "PolyForm-Noncommercial-1.0.0"),
    ):
        assert (MANIFEST[name].licence, MANIFEST[name].non_commercial) == (licence, "Noncommercial" in licence)


def test_names_that_nothing_has() -> None:
    assert "`hf download somebody/something`" in str(weights.missing_weight("somebody/something"))
    assert "did you mean sd21-base?" in str(weights.missing_weight("sd21base"))
    message = str(weights.missing_weight("zzz"))
    assert "known: tiny, sd21-base, sd21-768v, sd-turbo, sdxl-base, sd35-medium, controlnet-hed" in message
    assert ".pth" not in message


def test_the_default_folder_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEGASR_WEIGHTS", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local.weights_folder() == tmp_path / ".cache" / "megasr" / "weights"
    timm = MANIFEST["timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"]
    assert local.folder_of(timm, tmp_path) == tmp_path / "timm--vit_base_patch8_224.augreg2_in21k_ft_in1k"


def test_looking_at_the_table_imports_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import megasr.weights, megasr.weights.local; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "sys.exit(' '.join(new - sys.stdlib_module_names - {'megasr'}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
