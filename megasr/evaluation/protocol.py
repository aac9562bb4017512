"""The registered protocols: what the field calls by one name, told apart.

Every argument that pyiqa would fill in by itself is written out, so that a change of its defaults changes nothing here.
A registered protocol is never edited: its successor is another entry, and a test pins every fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from megasr.errors import unknown_name
from megasr.evaluation.spec import MetricSpec, Protocol

# Two metrics share the name MANIQA in the field: KonIQ-10k's weights score the same images 0.1 lower than PIPAL's.
_VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
PSNR = MetricSpec("psnr", "psnr", higher_is_better=True, on_y=True)
SSIM = MetricSpec("ssim", "ssim", higher_is_better=True, on_y=True, arguments=(("downsample", False),))
LPIPS = MetricSpec(
    "lpips",
    "lpips",
    higher_is_better=False,
    arguments=(("net", "alex"), ("version", "0.1")),
    weights=("alexnet-owt-7be5be79.pth", "LPIPS_v0.1_alex-df73285e.pth"),
)
DISTS = MetricSpec(
    "dists", "dists", higher_is_better=False, weights=("vgg16-397923af.pth", "DISTS_weights-f5e65c96.pth")
)
NIQE = MetricSpec(
    "niqe",
    "niqe",
    higher_is_better=False,
    arguments=(("test_y_channel", True), ("color_space", "yiq"), ("crop_border", 0), ("version", "original")),
    needs_hq=False,
    weights=("niqe_modelparameters.mat",),
)
MUSIQ = MetricSpec(
    "musiq",
    "musiq",
    higher_is_better=True,
    arguments=(("pretrained", "koniq10k"),),
    needs_hq=False,
    weights=("musiq_koniq_ckpt-e95806b9.pth",),
)
MANIQA_PIPAL = MetricSpec(
    "maniqa-pipal",
    "maniqa-pipal",
    higher_is_better=True,
    arguments=(("train_dataset", "pipal"), ("test_sample", 20), ("scale", 0.13)),
    needs_hq=False,
    weights=(_VIT, "MANIQA_PIPAL-ae6d356b.pth"),
)
MANIQA_KONIQ = MetricSpec(
    "maniqa",
    "maniqa",
    higher_is_better=True,
    arguments=(("train_dataset", "koniq"), ("test_sample", 20), ("scale", 0.8)),
    needs_hq=False,
    weights=(_VIT, "ckpt_koniq10k.pt"),
)
CLIPIQA = MetricSpec(
    "clipiqa",
    "clipiqa",
    higher_is_better=True,
    arguments=(("model_type", "clipiqa"), ("backbone", "RN50")),
    needs_hq=False,
    weights=("RN50.pt",),
)
CLIPIQA_PLUS = MetricSpec(
    "clipiqa+_vitL14_512",
    "clipiqa+_vitL14_512",
    higher_is_better=True,
    arguments=(("model_type", "clipiqa+_vitL14_512"), ("backbone", "ViT-L/14"), ("pos_embedding", True)),
    needs_hq=False,
    weights=("ViT-L-14.pt", "CLIPIQA+_ViTL14_512-e66488f2.pth"),
)
PAQ2PIQ = MetricSpec(
    "paq2piq",
    "paq2piq",
    higher_is_better=True,
    arguments=(("backbone", "resnet18"),),
    needs_hq=False,
    weights=("resnet18-f37072fd.pth", "P2P_RoIPoolModel-fit.10.bs.120-ca69882e.pth"),
)
FID = MetricSpec(
    "fid",
    "fid",
    higher_is_better=False,
    arguments=(("distance", "frechet"), ("features", "inception-2048-clean")),
    weights=("pt_inception-2015-12-05-6726825d.pth",),
    of_set=True,
)
KID = MetricSpec(
    "kid",
    "fid",
    higher_is_better=False,
    arguments=(("distance", "kernel"), ("features", "inception-2048-clean")),
    weights=("pt_inception-2015-12-05-6726825d.pth",),
    of_set=True,
)

# PSNR and SSIM as the field reports them (stablesr-crops-v1 below), and three formulas that see structure: GMSD
# (gradient magnitude deviation, Xue et al. 2014), FSIM (phase congruency, with colour, Zhang et al. 2011) and NLPD
# (normalised Laplacian pyramid distance, Laparra et al. 2016). All run offline.
WEIGHT_FREE_V1 = Protocol(
    name="weight-free-v1",
    version=1,
    metrics=(
        MetricSpec("psnr_y", "psnr", higher_is_better=True, on_y=True),
        MetricSpec("ssim_y", "ssim", higher_is_better=True, on_y=True, arguments=(("downsample", False),)),
        MetricSpec("gmsd", "gmsd", higher_is_better=False, arguments=(("test_y_channel", True),)),
        MetricSpec("fsim", "fsim", higher_is_better=True, arguments=(("chromatic", True),)),
        MetricSpec("nlpd", "nlpd", higher_is_better=False, arguments=(("channels", 1), ("test_y_channel", True))),
    ),
)

# 128 px centre crops restored to 512 px: StableSR, SeeSR, OSEDiff, PiSA-SR, TSD-SR, S3Diff, AddSR. The calls are those
# of OSEDiff's test script. The border is 0 as in that code; SeeSR's author says 4.
STABLESR_CROPS_V1 = Protocol(
    name="stablesr-crops-v1",
    version=1,
    metrics=(PSNR, SSIM, LPIPS, DISTS, FID, KID, NIQE, MUSIQ, MANIQA_PIPAL, CLIPIQA),
    size_px=512,
)

# 256 px inputs restored to 1024 px: DreamClear, LucidFlux. Its border is not published; 0 is assumed.
DREAMCLEAR_1024_V1 = Protocol(
    name="dreamclear-1024-v1",
    version=1,
    metrics=(PSNR, SSIM, LPIPS, DISTS, FID, KID, NIQE, MANIQA_KONIQ, MUSIQ, CLIPIQA),
    size_px=1024,
)

# Whole photographs: D3SR, PASD, ResShift and InvSR on RealSR. Which MANIQA they take differs; PIPAL's is taken here.
WHOLE_IMAGE_V1 = Protocol(
    name="whole-image-v1",
    version=1,
    metrics=(PSNR, SSIM, LPIPS, DISTS, FID, KID, NIQE, MUSIQ, MANIQA_PIPAL, CLIPIQA),
)

# pyiqa's defaults, as FaithDiff's script takes them: PSNR on RGB, SSIM on the full-range Y of YIQ.
RGB_V1 = Protocol(
    name="rgb-v1",
    version=1,
    metrics=(
        MetricSpec("psnr_rgb", "psnr", higher_is_better=True, arguments=(("test_y_channel", False),)),
        MetricSpec("ssim_yiq", "ssim", higher_is_better=True, on_y=True, arguments=(("downsample", False),)),
        LPIPS,
        DISTS,
        MUSIQ,
        MANIQA_PIPAL,
        CLIPIQA_PLUS,
        PAQ2PIQ,
    ),
    color_space="yiq",
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (WEIGHT_FREE_V1, STABLESR_CROPS_V1, DREAMCLEAR_1024_V1, WHOLE_IMAGE_V1, RGB_V1)
    }
)


def get_protocol(name: str) -> Protocol:
    """The registered protocol of this name. Raises UsageError with the nearest names when there is none."""
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
