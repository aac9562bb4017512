"""The weights that pyiqa's metrics need. pyiqa and torchvision look for them under these names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megasr.weights.published import Place, PublishedFile, Weight

_PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_TORCHVISION = "https://download.pytorch.org/models/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
# Of IQA-PyTorch, which collects and hosts these files; their authors may have terms of their own.
_PYIQA_LICENCE = "PolyForm-Noncommercial-1.0.0"

# name -> (purpose, licence, sha256 where more of it is known than the name tells). A file that its authors publish bit
# for bit is under their licence, wherever it is fetched from: LPIPS's head (github.com/richzhang/PerceptualSimilarity,
# torchmetrics ships the same bytes), DISTS (github.com/dingkeyan93/DISTS), Inception (github.com/mseitzer/pytorch-fid).
_PYIQA_FILES = {
    "niqe_modelparameters.mat": ("NIQE", _PYIQA_LICENCE, ""),
    "LPIPS_v0.1_alex-df73285e.pth": (
        "LPIPS",
        "BSD-2-Clause",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "DISTS_weights-f5e65c96.pth": (
        "DISTS",
        "MIT",
        "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
    ),
    "musiq_koniq_ckpt-e95806b9.pth": ("MUSIQ", _PYIQA_LICENCE, ""),
    "MANIQA_PIPAL-ae6d356b.pth": ("MANIQA", _PYIQA_LICENCE, ""),
    "ckpt_koniq10k.pt": ("MANIQA (KonIQ)", _PYIQA_LICENCE, ""),
    "CLIPIQA+_ViTL14_512-e66488f2.pth": ("CLIP-IQA+", _PYIQA_LICENCE, ""),
    "P2P_RoIPoolModel-fit.10.bs.120-ca69882e.pth": ("PaQ-2-PiQ", _PYIQA_LICENCE, ""),
    "pt_inception-2015-12-05-6726825d.pth": ("FID", "Apache-2.0", ""),
}
_TORCHVISION_FILES = {
    "alexnet-owt-7be5be79.pth": "AlexNet, for LPIPS",
    "vgg16-397923af.pth": "VGG16, for DISTS",
    "resnet18-f37072fd.pth": "ResNet-18, for PaQ-2-PiQ",
}
_CLIP_FILES = {
    "RN50.pt": ("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "CLIP ResNet-50, for CLIP-IQA"),
    "ViT-L-14.pt": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "CLIP ViT-L/14, for CLIP-IQA+"),
}


def _file(name: str, place: Place, purpose: str, address: str, licence: str, sha256: str = "") -> Weight:
    # The publishers put the beginning of the sha256 into the name.
    told = sha256 or "".join(re.findall(r"-([0-9a-f]{8})\.", name))
    return Weight(
        name=name,
        purpose=f"metric: {purpose}",
        mirrors=(address,),
        licence=licence,
        files=(PublishedFile(name, sha256=told),),
        non_commercial=licence == _PYIQA_LICENCE,
        place=place,
    )


def _weights() -> Iterator[Weight]:
    for name, (purpose, licence, sha256) in _PYIQA_FILES.items():
        yield _file(name, "pyiqa", purpose, f"{_PYIQA}{name}", licence, sha256)
    for name, purpose in _TORCHVISION_FILES.items():
        yield _file(name, "checkpoints", purpose, f"{_TORCHVISION}{name}", "BSD-3-Clause")
    for name, (sha256, purpose) in _CLIP_FILES.items():
        yield _file(name, "clip", purpose, f"{_CLIP}{sha256}/{name}", "MIT", sha256)
    vit = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
    yield Weight(
        name=vit,
        purpose="metric: ViT-B/8, for MANIQA",
        mirrors=(vit,),
        licence="Apache-2.0",
        files=(
            PublishedFile("config.json"),
            PublishedFile("model.safetensors", instead=PublishedFile("pytorch_model.bin")),
        ),
        about=346_000_000,
        place="hub",
    )


METRIC_WEIGHTS = tuple(_weights())
