"""MegaSRPipeline: a trained adapter and photographs in, sr out, with diffusers' conventions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.guidance.shown import shown_guidance
from megasr.guidance.strengths import check_strengths
from megasr.images import resize
from megasr.inference import devices, exported
from megasr.inference.arguments import (
    change_sampler,
    check_scale,
    choose_seed,
    choose_tiling,
    name_images,
    spread_prompts,
)
from megasr.inference.color import ColorFix, check_color_fix
from megasr.inference.inputs import AnyImage, OutputType, check_output_type, to_output, to_tensors
from megasr.inference.restore import Restored, Wanted, restore

if TYPE_CHECKING:
    from megasr.training.config import SamplerConfig
    from megasr.training.module import MegaSRModule

Callback = Callable[[Any, int, int, dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]


@dataclass(frozen=True)
class MegaSROutput:
    """What a pipeline returns.

    Attributes:
        images: a list of PIL images, or (B, 3, H, W) float32 in [0, 1], or (B, H, W, 3) uint8, as asked for; of
            images that differ in size the last two are lists.
        maps: the guidance maps that were used, name -> (B, C, H', W') float32 in [0, 1], or a list where sizes differ.
    """

    images: list[Image.Image] | list[Any] | torch.Tensor | np.ndarray
    maps: dict[str, Any]


class MegaSRPipeline:
    """Restore photographs with a trained adapter.

    Args:
        module: a trained module.
        device: where to run, as torch names it.

    Raises:
        UsageError: the adapter needs maps that a photograph does not have.
    """

    def __init__(self, module: MegaSRModule, device: str = "cpu") -> None:
        unavailable = [g.name for g in module.network.guidance if g.source != "lq"]
        if unavailable:
            raise UsageError(
                f"the adapter was trained with {', '.join(unavailable)}, which needs hq or rendered maps: "
                "such controls can be evaluated, but not used to restore a photograph"
            )
        self.module = module.eval()
        self.device = torch.device("cpu")
        self.dtype: torch.dtype | None = None
        self._maps: tuple[str, dict[str, torch.Tensor]] = ("", {})
        self.to(device)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, prior: str | None = None, sampler: SamplerConfig | None = None, device: str = "cpu"
    ) -> MegaSRPipeline:
        """Load a checkpoint.

        Args:
            path: checkpoint written by `megasr fit` or a study, or `tiny`, the shipped ControlNet of the tiny prior.
            prior: where the prior lies; None takes the source it was trained with.
            sampler: replaces the sampler of the run.
            device: where to run.

        Raises:
            MegaSRError: the checkpoint or the prior is missing, or they do not belong together.
        """
        from megasr.training.module import MegaSRModule

        changes = {"sampler": sampler} if sampler is not None else {}
        return cls(MegaSRModule.from_checkpoint(path, prior, **changes), device)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, prior: str | None = None, torch_dtype: torch.dtype | None = None
    ) -> MegaSRPipeline:
        """Load a folder that `save_pretrained` or `megasr export` wrote.

        Args:
            folder: the folder.
            prior: where the prior lies; None takes the one in the folder, or the source that was trained with.
            torch_dtype: in which the network computes; None is float32.

        Raises:
            MegaSRError: the folder or the prior is missing or damaged, or they do not belong together.
        """
        pipeline = cls(exported.load(folder, prior))
        return pipeline.to(dtype=torch_dtype) if torch_dtype is not None else pipeline

    def save_pretrained(self, folder: str | Path, include_prior: bool = False) -> None:
        """Write adapter.safetensors, config.json and a model card; the whole folder or nothing.

        Args:
            folder: is replaced when it was written by this before.
            include_prior: copy the prior as well; else it is named, with its fingerprint.

        Raises:
            UsageError: the folder exists and holds something else.
            MegaSRError: the place cannot be written to.
        """
        exported.save(self.module, Path(folder), include_prior)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> MegaSRPipeline:
        """Move to a device, or compute in another dtype: float32, bfloat16 or float16. Returns itself.

        Raises:
            UsageError: there is no such device, or the dtype is another one.
        """
        if device is not None:
            self.device = devices.move(self.module, device)
        if dtype is not None:
            self.dtype = devices.cast(self.module, dtype)
        return self

    def enable_model_cpu_offload(self) -> None:
        """Keep only the part on the GPU that computes: text encoder, vision tower, VAE, or U-Net with ControlNet.

        Raises:
            UsageError: there is no GPU.
        """
        self.device = devices.offload(self.module)

    @property
    def guidance(self) -> tuple[str, ...]:
        """Names of the guidance types that the adapter was trained with."""
        return tuple(guidance.name for guidance in self.module.network.guidance)

    @property
    def scale_factor(self) -> int:
        """Size of sr over size of lq in training."""
        return self.module.scale_factor

    @torch.no_grad()
    def __call__(
        self,
        image: AnyImage | Sequence[AnyImage],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance: Mapping[str, float] | None = None,
        prompt: str | Sequence[str] = "",
        negative_prompt: str | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        keys: Sequence[str] | None = None,
        tile: int | None = None,
        tile_overlap: int | None = None,
        color_fix: ColorFix | None = None,
        scale_factor: float | None = None,
        preset: str | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> MegaSROutput:
        """Restore one or more photographs; images of one size are restored together. None is as trained everywhere.

        Args:
            image: PIL image, array (h, w, 3) uint8, tensor (3, h, w) or (B, 3, h, w) in [0, 1], or a list of these.
            num_inference_steps: steps of the sampler.
            guidance_scale: of classifier-free guidance on the words.
            guidance: strength of each guidance type, from 0 (off) to 2, 1 as trained (megasr.guidance.strengths).
            prompt: comma-separated words for what is shown: for all images, or one per image.
            negative_prompt: used when guidance_scale is not 1.
            seed: of the noise.
            generator: draws the seed, in its place.
            keys: names, to which noise is keyed whatever the batch; None is "image", or "image0", "image1", ...
            tile: px of the sides of the tiles in which each image is restored; None restores whole images.
            tile_overlap: px that neighbouring tiles share; None is a quarter.
            color_fix: `adain` or `wavelet` takes colours from lq; None leaves them.
            scale_factor: size of sr over size of lq, any number above 0; sizes are rounded.
            preset: `quality` (50 steps), `balanced` (20) or `fast` (8).
            output_type: `pil`, `pt` or `np`.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": z}); may return such a dictionary.

        Raises:
            UsageError: an image or an option cannot be used.
            MegaSRError: weights are missing, or numbers overflowed.
        """
        images = to_tensors(image)
        check_output_type(output_type)
        names = name_images(keys, len(images))
        prompts = spread_prompts(prompt, len(images), self.module.adapter.text)
        scale = check_scale(self.scale_factor if scale_factor is None else scale_factor)
        wanted = self._wanted(
            guidance,
            callback_on_step_end,
            sampler=change_sampler(self.module.sampler, num_inference_steps, preset, guidance_scale, negative_prompt),
            seed=choose_seed(seed, generator, self.module.seed),
            tiling=choose_tiling(tile, tile_overlap),
            color_fix=check_color_fix(color_fix),
        )
        return _output(self._restore_all(images, names, prompts, scale, wanted), output_type)

    def _wanted(self, guidance: Mapping[str, float] | None, callback: Callback | None, **chosen: Any) -> Wanted:
        """How to restore. Types of strength 0 are not even extracted."""
        shown, strengths = self.module.shown, None
        if guidance is not None:
            strengths = check_strengths(
                guidance, {own.name: float(source is not None) for own, source in shown.items()}
            )
            shown = shown_guidance(tuple(shown), [name for name, strength in strengths.items() if strength > 0])

        def on_step(step: int, timestep: int, z: torch.Tensor) -> torch.Tensor | None:
            return ((callback and callback(self, step, timestep, {"latents": z})) or {}).get("latents")

        return Wanted(shown=shown, strengths=strengths, dtype=self.dtype, on_step=on_step, **chosen)

    def _restore_all(
        self, images: list[torch.Tensor], names: list[str], prompts: list[str], scale: float, wanted: Wanted
    ) -> list[Restored]:
        """Every image, in batches of one size; alone where it is cut into tiles."""
        done: dict[int, Restored] = {}
        for indices in _batches(images, alone=wanted.tiling is not None):
            batch = SRBatch(keys=[names[i] for i in indices], tags=[prompts[i] for i in indices])
            restored = self._restore(torch.stack([images[i] for i in indices]), batch, scale, wanted)
            done |= {i: Restored(*_sample(restored, n)) for n, i in enumerate(indices)}
        return [done[i] for i in range(len(images))]

    def _restore(self, lq: torch.Tensor, batch: SRBatch, scale: float, wanted: Wanted) -> Restored:
        """A batch of one size. Its maps are kept: with other strengths of guidance they need not be made again."""
        height, width = (max(1, round(side * scale)) for side in lq.shape[-2:])
        same = self._identify(lq, f"{batch['keys']}{tuple(lq.shape)}{height}x{width}{wanted.tiling}")
        kept = self._maps[1] if self._maps[0] == same else {}
        batch = SRBatch(**{**batch, "lq": lq.to(self.device), "maps": kept})
        restored = restore(self.module, batch, resize(batch["lq"], height, width), wanted)
        self._maps = same, kept | restored.maps
        return restored

    def _identify(self, lq: torch.Tensor, about: str) -> str:
        return hashlib.sha256(about.encode() + lq.numpy().tobytes()).hexdigest()


def _batches(images: Sequence[torch.Tensor], alone: bool) -> list[list[int]]:
    """Numbers of the images that are restored together."""
    if alone:
        return [[number] for number in range(len(images))]
    by_size: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        by_size[image.shape].append(number)
    return list(by_size.values())


def _sample(restored: Restored, number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return restored.sr[number].cpu(), {name: made[number].cpu() for name, made in restored.maps.items()}


def _output(restored: list[Restored], kind: OutputType) -> MegaSROutput:
    maps: dict[str, Any] = {}
    for name in restored[0].maps:
        made = [one.maps[name] for one in restored]
        maps[name] = torch.stack(made) if len({one.shape for one in made}) == 1 else made
    return MegaSROutput(to_output([one.sr for one in restored], kind), maps)
