"""Weights of pyiqa's metrics in their real formats and under their real names, with random numbers in them.

Layers that no metric reads are stored as one repeated number, which keeps the files small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from megasr.rng import numpy_generator, seeded_initialisation

State = dict[str, torch.Tensor]


def write_metric_weights(folder: Path, names: set[str]) -> None:
    """Write those of the named files that are known here; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names & set(WRITERS):
        WRITERS[name](folder / name)


def _torchvision(model: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import torchvision

        with torch.device("meta"):
            network = getattr(torchvision.models, model)()
        features = _initialised(network.features, path.name)
        state = {f"features.{name}": value for name, value in features.items()}
        for name, value in network.state_dict().items():
            state.setdefault(name, torch.zeros(()).expand(value.shape))
        torch.save(state, path)

    return write


def _initialised(network: nn.Module, name: str) -> State:
    network = network.to_empty(device="cpu")
    with seeded_initialisation(0, name):
        for layer in network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return network.state_dict()


def _lpips(*channels: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        generator = numpy_generator(0, "lpips")
        weights = [torch.from_numpy(generator.random((1, count, 1, 1), dtype=np.float32)) for count in channels]
        torch.save({f"lin{i}.model.1.weight": weight for i, weight in enumerate(weights)}, path)

    return write


def _dists(path: Path) -> None:
    shape = (1, 3 + 64 + 128 + 256 + 512 + 512, 1, 1)
    generator = numpy_generator(0, "dists")
    torch.save({name: torch.from_numpy(generator.random(shape, dtype=np.float32)) for name in ("alpha", "beta")}, path)


def _niqe(path: Path) -> None:
    from scipy.io import savemat

    root = numpy_generator(0, "niqe").normal(size=(36, 36))
    savemat(path, {"mu_prisparam": root[:1], "cov_prisparam": root @ root.T})


def _inception(path: Path) -> None:
    from pyiqa.archs import inception

    # The real constructor, which ends by loading what is to be written here.
    load, inception.load_pretrained_network = inception.load_pretrained_network, lambda *_: None
    try:
        with seeded_initialisation(0, "inception"):
            state = inception.fid_inception_v3().state_dict()
    finally:
        inception.load_pretrained_network = load
    torch.save(state, path)


def _musiq(path: Path) -> None:
    from pyiqa.archs.musiq_arch import MUSIQ

    with seeded_initialisation(0, "musiq"):
        torch.save(MUSIQ(pretrained=False).state_dict(), path)


def _clip(path: Path) -> None:
    from pyiqa.archs.clip_model import CLIP

    with seeded_initialisation(0, "clip"):
        network = CLIP(
            embed_dim=32, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=8, vision_patch_size=None,
            context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=1,
        )  # fmt: skip
    # CLIP's published files are TorchScript archives.
    example = torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network.eval(), example).save(str(path))


def _qualiclip(path: Path) -> None:
    from pyiqa.archs.clip_model import load

    _clip(path)  # a CLIP that was tuned, beside the features of 14 prompts
    state = {f"clip_model.{name}": value for name, value in load(str(path), "cpu").state_dict().items()}
    features = torch.from_numpy(numpy_generator(0, "prompts").normal(size=(14, 32)).astype(np.float32))
    torch.save(state | {"prompts_features": features}, path)


def _learned_prompts(path: Path) -> None:
    torch.save(torch.from_numpy(numpy_generator(0, "prompts").normal(size=(2, 16, 64)).astype(np.float32)), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "alexnet-owt-7be5be79.pth": _torchvision("alexnet"),
    "vgg16-397923af.pth": _torchvision("vgg16"),
    "LPIPS_v0.1_alex-df73285e.pth": _lpips(64, 192, 384, 256, 256),
    "LPIPS_v0.1_vgg-a78928a0.pth": _lpips(64, 128, 256, 512, 512),
    "DISTS_weights-f5e65c96.pth": _dists,
    "niqe_modelparameters.mat": _niqe,
    "pt_inception-2015-12-05-6726825d.pth": _inception,
    "musiq_koniq_ckpt-e95806b9.pth": _musiq,
    "RN50.pt": _clip,
    "QualiCLIP.pth": _qualiclip,
    "CLIP-IQA+_learned_prompts-603f3273.pth": _learned_prompts,
}
