"""What a MegaSR adapter consists of. One frozen object; every field changes the network. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from megasr.errors import UsageError, split_names

Gate = Literal["linear", "channel", "scalar"]
FusionInit = Literal["as_drawn", "residual"]
Version = Literal["v1", "v2"]
Fusion = Literal["sum", "concat"]
Connector = Literal["per_site", "shared"]

# Parameters of a denoiser above which CSM has one connector and gates by channel by default: in SD 3.5 medium (2.5 B) a
# connector and a linear gate at each of 36 sites are 156 M parameters, these are 2 M.
LARGE_DENOISER = 2_000_000_000


@dataclass(frozen=True)
class AdapterConfig:
    """The trained part of MegaSR (2503.08096 v2, figure 2) and the choices that the figure leaves open.

    >>> from megasr import AdapterConfig
    >>> AdapterConfig(guidance="hed,depth", image=True).guidance
    ('hed', 'depth')

    Args:
        guidance: names of the guidance types that MSFM fuses into every block; none leaves MSFM out.
        text: condition on the tags. Off, every prompt is the empty one.
        image: add CSM's visual branch over CLIP image tokens.
        image_width: width of the image tokens (1280 for OpenCLIP ViT-H/14). Used with image on.
        controlnet: add the ControlNet on lq. Without it lq reaches the U-Net through guidance, image tokens, and the
            sampler's start.
        lq_stream: DiT4SR's (2503.23580) in place of the ControlNet, on an MMDiT: tokens of lq's latent go through the
            prior's frozen blocks beside the image's, with linear layers of their own in every attention and a
            convolution to the image in every MLP. Needs controlnet off.
        gate: form of CSM's zero-initialised gate (LGWAM): a `linear` map, one number per `channel`, or one per site
            (`scalar`). None is linear, but channel for a denoiser of over LARGE_DENOISER parameters.
        fusion_init: `as_drawn` is the figure: F' = sum of SAFTs of GroupNorm(F), which replaces the prior's features
            from step 0. `residual` keeps F and starts at the identity; it is the
            default because it won at equal budget (experiments/tiny/fusion_photos.yaml), and an MMDiT takes no other.
        saft_width: hidden channels of each SAFT.
        stage1: how MSFM aggregates region maps: v2 multiplies the maps by the attention, v1 its own features.
        rca: add v1's representation cross-attention over the tagger's image representation after every CSM.
        representation_width: width of that representation (512 for RAM). Used with rca on.
        gradient_checkpointing: recompute each block in the backward pass: less memory, more time, same numbers.
        connector: translation of the image tokens: one `per_site`, as the figure has it, or one `shared` by all. None
            is per_site, but shared for a denoiser of over LARGE_DENOISER parameters. Used with image on.
        fusion: `sum` gives every map a SAFT of its own, `concat` stacks all maps into one SAFT; None is the figure's
            two stages, in which the region maps are aggregated first.
        map_patch: side of the square of a map's pixels that a site sees at each place: the map is resized to so many
            times the site's size and its squares become channels. 1, the mean, loses where in its cell an edge runs.
        fusion_in: fuse the maps into the `unet` or the `controlnet` only; None is both, as the figure has it.
        msfm: a class of megasr.networks.msfm.MSFMS in place of MSFM.
        csm: a class of megasr.networks.csm.CSMS in place of CSM.
        lq_encoder: a class of megasr.networks.controlnet.LQ_ENCODERS in place of ControlNet's encoder of lq.
        prior_lora: rank of a LoRA (2106.09685) on all linear layers and convolutions of the prior's denoiser, which is
            trained with the adapter; None leaves the prior as it is.
        encoder_lora: rank of a LoRA on the VAE's encoder where it reads lq (OSEDiff's); hq is read without. Needs
            objective.kind one_step or few_step, and a sampler that starts from lq.
    """

    guidance: tuple[str, ...] | str = ()
    text: bool = True
    image: bool = False
    image_width: int = 1280
    controlnet: bool = True
    lq_stream: bool = False
    gate: Gate | None = None
    fusion_init: FusionInit = "residual"
    saft_width: int = 128
    stage1: Version = "v2"
    rca: bool = False
    representation_width: int = 512
    gradient_checkpointing: bool = False
    connector: Connector | None = None
    fusion: Fusion | None = None
    map_patch: int = 1
    fusion_in: Literal["unet", "controlnet"] | None = None
    msfm: str = "megasr"
    csm: str = "megasr"
    lq_encoder: str = "megasr"
    prior_lora: int | None = None
    encoder_lora: int | None = None

    def __post_init__(self) -> None:
        # YAML gives a list, which would make the frozen object unhashable, or a string.
        object.__setattr__(self, "guidance", split_names(self.guidance))
        for name in ("saft_width", "image_width", "representation_width", "map_patch"):
            if getattr(self, name) < 1:
                raise UsageError(f"adapter.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("prior_lora", "encoder_lora"):
            if (rank := getattr(self, name)) is not None and rank < 1:
                raise UsageError(f"adapter.{name} must be a rank of at least 1, got {rank}")
        if self.lq_stream and self.controlnet:
            raise UsageError("adapter.lq_stream and adapter.controlnet are two ways of lq: set controlnet to false")
        if self.fusion_in == "controlnet" and not self.controlnet:
            raise UsageError(
                "adapter.fusion_in is controlnet, but adapter.controlnet is off: the maps would go nowhere"
            )

    def at_size(self, denoiser_parameters: int) -> AdapterConfig:
        """With the gate and the connector that None stands for, for a denoiser of so many parameters."""
        large = denoiser_parameters > LARGE_DENOISER
        return replace(
            self,
            gate=self.gate or ("channel" if large else "linear"),
            connector=self.connector or ("shared" if large else "per_site"),
        )
