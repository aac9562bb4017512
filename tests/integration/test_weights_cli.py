"""`megasr weights` as a person meets it: list, fetch (interrupted, on a full disk, by many at once), verify."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megasr import cli
from megasr.commands import doctor
from megasr.weights import MANIFEST
from tests.helpers.weight_server import COMMIT, WeightServer, weight_server

HUB = "depth-anything/Depth-Anything-V2-Base-hf"
NAME = "depth-anything-v2-base"  # no sha256 of it is known
FILES = {"config.json": b"{}", "preprocessor_config.json": b"[]", "model.safetensors": bytes(range(256)) * 4000}
FETCH = [sys.executable, "-m", "megasr.cli", "weights", "fetch", NAME]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    """A hub with one weight; nothing else is on this machine."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MEGASR_WEIGHTS", str(tmp_path / "weights"))
    with weight_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.host(HUB, FILES)
        yield server


def is_whole(folder: Path) -> bool:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", ".cache")}
    return files == FILES


def test_list_fetch_verify(server: WeightServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "weights" / NAME
    assert cli.main(["weights", "list"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"^{NAME} +missing +~390 MB +nc CC-BY-NC-4.0 +guidance depth", out, re.MULTILINE)
    assert re.search(r"^controlnet-hed +missing +29 MB +Apache-2.0 +guidance hed", out, re.MULTILINE)
    assert all(re.search(rf"^{re.escape(name)} ", out, re.MULTILINE) for name in MANIFEST)

    assert cli.main(["weights", "verify", NAME]) == 1
    out, err = capsys.readouterr()
    assert out == f"missing  {NAME}  not on this machine\n"
    assert "1 files of weights are wrong or missing" in err

    assert cli.main(["weights", "fetch", NAME]) == 0
    assert capsys.readouterr().out == f"{folder}: {NAME}, licence: CC-BY-NC-4.0 (non-commercial)\n"
    assert is_whole(folder)

    assert cli.main(["weights", "list"]) == 0
    assert re.search(rf"^{NAME} +here ", capsys.readouterr().out, re.MULTILINE)
    assert cli.main(["weights", "verify", NAME]) == 0
    assert re.search(rf"^unknown  {NAME}  {folder}/config.json: sha256 [0-9a-f]{{64}}, none", capsys.readouterr().out)


def test_verify_finds_what_is_wrong(server: WeightServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hed, lpips = MANIFEST["controlnet-hed"].files[0], "LPIPS_v0.1_alex-df73285e.pth"
    for folder, name in (("controlnet-hed", hed.name), (lpips, lpips), (NAME, "config.json")):
        (tmp_path / "weights" / folder).mkdir(parents=True)
        (tmp_path / "weights" / folder / name).write_bytes(b"{}")
    assert cli.main(["weights", "verify"]) == 1
    out, err = capsys.readouterr()
    assert (
        f"wrong    controlnet-hed  {tmp_path}/weights/controlnet-hed/{hed.name}: is truncated: has 2 of 29444406" in out
    )
    assert re.search(rf"^wrong    {lpips}  .*: sha256 expected df73285e[0-9a-f]+, found 44136fa3", out, re.MULTILINE)
    assert f"missing  {NAME}  {tmp_path}/weights/{NAME}/model.safetensors\n" in out
    assert "4 files of weights are wrong or missing" in err
    assert cli.main(["weights", "list"]) == 0
    assert re.search(r"^controlnet-hed +damaged ", capsys.readouterr().out, re.MULTILINE)
    assert "is truncated: has 2 of 29444406 bytes; run `megasr weights fetch" in doctor.place_of("controlnet-hed")
    assert doctor.place_of("dape") == "not on this machine: `megasr weights fetch dape`"


def test_nothing_to_verify(server: WeightServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["weights", "verify"]) == 0
    assert capsys.readouterr().out == "no weight is on this machine\n"


def test_many_at_once_fetch_it_once(server: WeightServer, tmp_path: Path) -> None:
    server.pause_s = 0.005
    processes = [subprocess.Popen(FETCH, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0 or "another process is writing to" in errors
    assert 0 in [process.returncode for process in processes]
    assert server.ranges_of("model.safetensors") == [""]
    assert is_whole(tmp_path / "weights" / NAME)


def test_fetch_to_another_folder(server: WeightServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = "segformer-b5-ade"
    server.host(MANIFEST[other].mirrors[0], FILES)
    assert cli.main(["weights", "fetch", NAME, other, "--to", str(tmp_path / "disk")]) == 0
    assert is_whole(tmp_path / "disk" / other)
    assert f"To use it from there: MEGASR_WEIGHTS={tmp_path}/disk\n" in capsys.readouterr().out
    assert is_whole(tmp_path / "disk" / NAME)
    assert not (tmp_path / "weights" / NAME).exists()


def test_a_repository_goes_into_the_cache_of_its_library(server: WeightServer, tmp_path: Path) -> None:
    name = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"the same again"}
    server.host(name, files)
    index = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
    server.files[f"/api/models/{name}/revision/main"] = json.dumps(index).encode()
    tree = [{"type": "file", "path": file, "size": len(content), "oid": "0"} for file, content in files.items()]
    server.files[f"/api/models/{name}/tree/{COMMIT}"] = json.dumps(tree).encode()
    done = subprocess.run([*FETCH[:-1], name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.partition(": ")[0])
    assert snapshot.is_relative_to(tmp_path / "hub")
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "model.safetensors"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    verify = [*FETCH[:-2], "verify", name]
    shown = subprocess.run(verify, capture_output=True, text=True, check=False, env=environment).stdout
    assert re.search(rf"^unknown  {name}  {snapshot}/model.safetensors: sha256 ", shown, re.MULTILINE)
    offline = subprocess.run([*FETCH[:-1], name], capture_output=True, text=True, check=False, env=environment)
    assert (offline.returncode, offline.stderr.count("\n")) == (1, 1)
    assert "megasr: error: HF_HUB_OFFLINE is set: nothing is fetched" in offline.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("fetch", 2, "required: NAME"),
        ("fetch controlnet_hed", 2, "unknown weight 'controlnet_hed'; did you mean controlnet-hed"),
        ("verify RN50.pth", 2, "unknown weight 'RN50.pth'; did you mean RN50.pt"),
        ("fetch controlnet-hed", 1, "cannot fetch controlnet-hed, ControlNetHED.pth: lllyasviel/Annotators: 404"),
        ("remove dape", 2, "invalid choice: 'remove'"),
    ],
)
def test_mistakes_are_one_line(
    options: str, code: int, says: str, server: WeightServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["weights", *options.split()]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
