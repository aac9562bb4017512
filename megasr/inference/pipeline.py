"""MegaSRPipeline: restore images with a trained adapter, in the manner of diffusers; exports."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from megasr.batch import SRBatch, check_range, extremes
from megasr.diffusion import Flow
from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.files import file_sha256, write_whole_folder
from megasr.guidance.extract import check_strengths, shown_guidance
from megasr.images import ColorFix, from_uint8, resize, to_uint8
from megasr.inference.tiling import Tiling
from megasr.provenance import provenance
from megasr.system import MegaSR, Restored, RestoreOptions
from megasr.training.checkpoint import adapter_parameters, build_from_state
from megasr.training.config import SamplerConfig
from megasr.weights.local import find_prior

PRESETS = {"quality": 50, "balanced": 20, "fast": 8}  # steps
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AnyImage: TypeAlias = Image.Image | np.ndarray | torch.Tensor
OutputType = Literal["pil", "pt", "np"]
Callback = Callable[[Any, int, int, dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]


def fixed_steps(system: MegaSR) -> int | None:
    """The steps that an adapter was trained to restore in (one_step, few_step); None where any number will do."""
    kind = (system.settings.get("objective") or {}).get("kind")
    return None if kind is None else system.sampler.num_steps


def change_sampler(
    system: MegaSR,
    steps: int | None,
    preset: str | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
    color_fix: ColorFix | None,
) -> SamplerConfig:
    """The sampler with the changes that are not None.

    Raises:
        UsageError: a preset or colour fix is unknown, or a preset is given beside a number of steps; the adapter was
            trained for another number of steps than is asked for (one_step, few_step); or classifier-free guidance
            would do nothing.
    """
    if preset is not None:
        if steps is not None:
            raise UsageError(f"num_inference_steps={steps} and preset={preset!r}: give one of them")
        if preset not in PRESETS:
            raise unknown_name("preset", preset, PRESETS)
        steps = PRESETS[preset]
    fixed = fixed_steps(system)
    if fixed is not None and steps not in (None, fixed):
        asked = f"preset={preset!r}" if preset else f"num_inference_steps={steps}"
        raise UsageError(f"{asked}: the adapter was trained to restore in {fixed}; leave it out")
    changes = {"num_steps": steps, "guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    changes["color_fix"] = color_fix
    changed = replace(system.sampler, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]
    if guidance_scale not in (None, 1) and not system.adapter.text and not changed.negative_prompt:
        raise UsageError(
            f"guidance_scale={guidance_scale:g} would do nothing: the adapter uses no words; leave it out, or give "
            "negative_prompt, which it leads away from"
        )
    if negative_prompt and changed.guidance_scale == 1:
        raise UsageError("negative_prompt would do nothing: guidance_scale is 1; give another, or leave both out")
    return changed


def spread_prompts(prompt: str | Sequence[str], count: int, uses_text: bool) -> list[str]:
    """One prompt per image.

    Raises:
        UsageError: there is another number of them, or words that the adapter does not read.
    """
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise UsageError(f"prompt: {len(prompts)} for {count} images; give one for all, or one per image")
    if any(prompts) and not uses_text:
        raise UsageError("prompt: the adapter was trained without text, words do nothing")
    return prompts


def choose_tiling(tile: int | None, overlap: int | None, native_px: int | None) -> Tiling | None:
    """Tiles of `tile` px for sr that is larger; 0 is never, None the size that the prior was trained on.

    Such tiles are better than the whole on the tiny prior (docs/upscale.md), and attention's time grows with the square
    of the pixels.

    Raises:
        UsageError: a size cannot be used, or an overlap is given without tiles.
    """
    tile = (native_px or 0) if tile is None else tile
    if tile == 0 and overlap is not None:
        raise UsageError(f"tile_overlap={overlap} does nothing without tiles")
    return Tiling(tile, overlap) if tile else None


def tiling_of(tiling: Tiling | None, size: Sequence[int], scale: float) -> Tiling | None:
    """The tiles for a photograph of a size (height, width); None where its sr is one."""
    return tiling if tiling is not None and max(size) * scale > tiling.size else None


def to_tensors(image: AnyImage | Sequence[AnyImage]) -> list[torch.Tensor]:
    """Every image as lq (3, h, w) float32 in [0, 1] on the CPU; see MegaSRPipeline.__call__.

    A PIL image is turned as its EXIF says and converted to RGB: an alpha channel is dropped.

    Raises:
        UsageError: there is no image, or one is of another kind, shape or range.
    """
    if isinstance(image, torch.Tensor) and image.ndim == 4:
        image = list(image)
    if not isinstance(image, Sequence):
        return [_to_tensor(image, "image")]
    if not image:
        raise UsageError("image: the list is empty, there is nothing to restore")
    return [_to_tensor(one, f"image {number}") for number, one in enumerate(image)]


def _to_tensor(image: Any, name: str) -> torch.Tensor:
    if isinstance(image, Image.Image):
        lq = _from_pil(image, name)
    elif isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(f"{name}: an array must be (h, w, 3) uint8 RGB, got {image.dtype} of shape {image.shape}")
        lq = from_uint8(image)
    elif isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            shape = tuple(image.shape)
            raise UsageError(f"{name}: a tensor must be float RGB (3, h, w) in [0, 1], got {image.dtype} of {shape}")
        lq = image.detach().float().cpu()
    else:
        raise UsageError(
            f"{name}: expected a PIL image, an array, a tensor or a list of these, got {type(image).__name__}"
        )
    if lq.numel() == 0:
        raise UsageError(f"{name}: has no pixels, its shape is {tuple(lq.shape)}")
    check_range(extremes(lq), name)
    return lq


def _from_pil(image: Image.Image, name: str) -> torch.Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert("RGB") would clip it to white
        grey = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535)
        return grey.expand(3, -1, -1)
    if image.mode in ("I", "F"):
        raise UsageError(f"{name}: its mode is {image.mode!r}, whose range is not known; convert it to RGB or I;16")
    return from_uint8(np.asarray(image.convert("RGB")))


@dataclass(frozen=True)
class MegaSROutput:
    """Output of a pipeline.

    Attributes:
        images: a list of PIL images, or (B, 3, H, W) float32 in [0, 1], or (B, H, W, 3) uint8, as asked for; of
            images that differ in size the last two are lists.
        maps: the guidance maps that were used, name -> (B, C, H', W') float32 in [0, 1], or a list where sizes differ.
    """

    images: list[Image.Image] | list[Any] | torch.Tensor | np.ndarray
    maps: dict[str, Any]


class MegaSRPipeline:
    """Restore photographs with a trained adapter.

    >>> from PIL import Image
    >>> from megasr import MegaSRPipeline
    >>> pipeline = MegaSRPipeline.from_checkpoint("tiny")  # the shipped adapter; or from_pretrained("folder")
    >>> pipeline(Image.new("RGB", (16, 12)), preset="fast", seed=3).images[0].size
    (64, 48)

    Args:
        module: a trained MegaSR or MegaSRModule.
        device: where to run, as torch names it.

    Raises:
        UsageError: the adapter needs maps that a photograph does not have.
    """

    def __init__(self, module: MegaSR, device: str = "cpu") -> None:
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
            path: checkpoint written by `megasr fit` or a study, or one that ships: `tiny-one-step` or `tiny`.
            prior: where the prior lies; None takes the source it was trained with.
            sampler: replaces the sampler of the run.
            device: where to run.

        Raises:
            MegaSRError: the checkpoint or the prior is missing, or they do not belong together.
        """
        changes = {"sampler": sampler} if sampler is not None else {}
        return cls(MegaSR.from_checkpoint(path, prior, **changes), device)

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
        return cls(load_export(folder, prior)).to(dtype=torch_dtype)

    def save_pretrained(self, folder: str | Path, include_prior: bool = False) -> None:
        """Write adapter.safetensors, config.json and a model card; the whole folder or nothing.

        Args:
            folder: is replaced when it was written by this before.
            include_prior: copy the prior as well; else it is named, with its fingerprint.

        Raises:
            UsageError: the folder exists and holds something else.
            MegaSRError: the place cannot be written to.
        """
        save_export(self.module, Path(folder), include_prior)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> MegaSRPipeline:
        """Move to a device, or let prior and network compute in float32, bfloat16 or float16. Returns itself.

        Raises:
            UsageError: there is no such device, or the dtype is another one.
        """
        if device is not None:
            try:
                self.device = torch.device(device)
                self.module.to(self.device)
            except (RuntimeError, AssertionError) as error:
                raise UsageError(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error
        if dtype is not None:
            if dtype not in DTYPES:
                raise UsageError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
            self.dtype = dtype
            self.module.prior.to(dtype)
            self.module.network.to(dtype)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Keep text encoder, vision tower, tagger, VAE and network on the CPU until each is needed on the GPU.

        Raises:
            UsageError: there is no GPU.
        """
        from accelerate import cpu_offload_with_hook

        device = torch.device(device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UsageError("enable_model_cpu_offload needs a GPU, and torch finds none: leave it out")
        self.to("cpu")
        module, hook = self.module, None
        for part in (module.vision, module.tagger, module.prior.text_encoder, module.network, module.prior.vae):
            if isinstance(part, nn.Module):
                _, hook = cpu_offload_with_hook(part, device, hook)
        self.device = device

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
        """Restore one or more photographs, those of one size together. None is as trained everywhere.

        Args:
            image: PIL image, array (h, w, 3) uint8, tensor (3, h, w) or (B, 3, h, w) in [0, 1], or a list of these.
            num_inference_steps: steps of the sampler.
            guidance_scale: of classifier-free guidance on the words.
            guidance: strength of each guidance type, from 0 (off) to 2, 1 as trained (megasr.guidance.extract).
            prompt: comma-separated words for what the image shows: for all images, or one per image.
            negative_prompt: used when guidance_scale is not 1.
            seed: of the noise; or give a generator, which draws one.
            keys: names of the images, to which noise is keyed; None is "image", or "image0", "image1", ...
            tile: px of the tiles of sr that is larger; 0 never, None is the size that the prior was trained on.
            tile_overlap: px that neighbouring tiles share; None is a quarter.
            color_fix: `adain` or `wavelet` takes colours from lq, `none` leaves them.
            scale_factor: size of sr over size of lq, any number above 0; sizes are rounded.
            preset: `quality` (50 steps), `balanced` (20) or `fast` (8).
            output_type: `pil`, `pt` or `np`; see MegaSROutput.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": z}); may return such a dictionary.

        Raises:
            UsageError: an image or an option cannot be used.
            MegaSRError: weights are missing, or numbers overflowed.
        """
        images, scale = to_tensors(image), self.scale_factor if scale_factor is None else scale_factor
        if output_type not in get_args(OutputType):
            raise unknown_name("output_type", output_type, get_args(OutputType))
        if not 0 < scale < math.inf:
            raise UsageError(f"scale_factor must be above 0, got {scale}")
        sampler = change_sampler(self.module, num_inference_steps, preset, guidance_scale, negative_prompt, color_fix)
        options = self._options(
            guidance,
            callback_on_step_end,
            sampler=sampler,
            seed=self._seed(seed, generator),
            tiling=choose_tiling(tile, tile_overlap, self.module.prior.native_px),
        )
        prompts = spread_prompts(prompt, len(images), self.module.adapter.text)
        restored = self._restore_all(images, _names(keys, len(images)), prompts, scale, options)
        maps = {name: _stack([one.maps[name] for one in restored]) for name in restored[0].maps}
        return MegaSROutput(_to_output([one.sr for one in restored], output_type), maps)

    def _seed(self, seed: int | None, generator: torch.Generator | None) -> int:
        if generator is None:
            return self.module.seed if seed is None else seed
        if seed is not None:
            raise UsageError(f"seed={seed} and a generator: give one of them")
        return int(torch.randint(2**62, (), generator=generator, device=generator.device))

    def _options(
        self, strengths: Mapping[str, float] | None, callback: Callback | None, **chosen: Any
    ) -> RestoreOptions:
        """Add guidance of these strengths (types of strength 0 are not even extracted), the dtype and the callback."""
        sources = self.module.map_sources
        if strengths is not None:
            strengths = check_strengths(strengths, {own.name: float(src is not None) for own, src in sources.items()})
            sources = shown_guidance(tuple(sources), [name for name, strength in strengths.items() if strength > 0])

        def on_step(step: int, timestep: int, z: torch.Tensor) -> torch.Tensor | None:
            return ((callback and callback(self, step, timestep, {"latents": z})) or {}).get("latents")

        return RestoreOptions(map_sources=sources, strengths=strengths, dtype=self.dtype, on_step=on_step, **chosen)

    def _restore_all(
        self, images: list[torch.Tensor], names: list[str], prompts: list[str], scale: float, options: RestoreOptions
    ) -> list[Restored]:
        """Every image, in batches of one size; alone where it is cut into tiles."""
        batches: defaultdict[object, list[int]] = defaultdict(list)
        tilings = [tiling_of(options.tiling, image.shape[-2:], scale) for image in images]
        for number, image in enumerate(images):
            batches[number if tilings[number] else image.shape].append(number)
        done: dict[int, Restored] = {}
        for numbers in batches.values():
            batch = SRBatch(keys=[names[i] for i in numbers], tags=[prompts[i] for i in numbers])
            lq = torch.stack([images[i] for i in numbers])
            sr, maps = self._restore(lq, batch, scale, replace(options, tiling=tilings[numbers[0]]))
            for n, i in enumerate(numbers):
                done[i] = Restored(sr[n].cpu(), {name: image[n].cpu() for name, image in maps.items()})
        return [done[i] for i in range(len(images))]

    def _restore(self, lq: torch.Tensor, batch: SRBatch, scale: float, options: RestoreOptions) -> Restored:
        """A batch of one size. Its maps are kept: with other strengths of guidance they need not be made again."""
        height, width = (max(1, round(side * scale)) for side in lq.shape[-2:])
        about = f"{batch['keys']}{tuple(lq.shape)}{height}x{width}{options.tiling}"
        digest = hashlib.sha256(about.encode() + lq.numpy().tobytes()).hexdigest()
        kept = self._maps[1] if self._maps[0] == digest else {}
        batch = SRBatch(**{**batch, "lq": lq.to(self.device), "maps": kept})
        restored = self.module.restore_with(batch, resize(batch["lq"], height, width), options)
        self._maps = digest, kept | restored.maps
        return restored


def _names(keys: Sequence[str] | None, count: int) -> list[str]:
    """One name per image.

    Raises:
        UsageError: there is another number of them.
    """
    if keys is None:
        return ["image"] if count == 1 else [f"image{number}" for number in range(count)]
    if isinstance(keys, str) or len(keys) != count:
        raise UsageError(f"keys: {keys!r} for {count} images; give a list with one name per image")
    return list(keys)


def _to_output(images: list[torch.Tensor], kind: OutputType) -> Any:
    """Images (3, H, W) in [0, 1] as PIL images, or as one tensor or array where all have one size, else a list."""
    if kind == "pt":
        return _stack(images)
    arrays = [to_uint8(image) for image in images]
    if kind == "pil":
        return [Image.fromarray(array) for array in arrays]
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays


def _stack(images: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


WEIGHTS, CONFIG, CARD, PRIOR = "adapter.safetensors", "config.json", "README.md", "prior"
FORMAT = 1
_PRIOR_PARTS = ("vae", "unet", "transformer", "text_encoder*", "tokenizer*", "scheduler")


def save_export(system: MegaSR, folder: Path, include_prior: bool) -> None:
    """Write a folder that `load` reads, whole or not at all. Parameters as for MegaSRPipeline.save_pretrained."""
    from safetensors.torch import save_file

    if folder.exists() and not is_exported(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an exported adapter: choose another folder")
    if others := sorted({path.name for path in folder.glob("*")} - {WEIGHTS, CONFIG, CARD, PRIOR}):
        raise UsageError(f"{folder} holds more than an exported adapter ({', '.join(others)}): choose another folder")
    try:
        with write_whole_folder(folder) as temporary:
            state = adapter_parameters(system)
            save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, temporary / WEIGHTS)
            config = _config(system) | {"sha256": file_sha256(temporary / WEIGHTS)}
            (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            (temporary / CARD).write_text(_card(system, sum(value.numel() for value in state.values()), include_prior))
            if include_prior:
                _copy_prior(find_prior(system.settings["prior"]), temporary / PRIOR)
    except OSError as error:
        raise MegaSRError(f"cannot write {folder}: {error.strerror or error}") from error


def load_export(folder: str | Path, prior: str | None = None) -> MegaSR:
    """The MegaSR of a folder that `save` wrote. Parameters as for MegaSRPipeline.from_pretrained."""
    folder = Path(folder)
    if not is_exported(folder):
        last = folder / "last.ckpt"
        hint = (
            f"a run's checkpoint is {last}"
            if last.is_file()
            else "from_checkpoint is for checkpoints, tiny-one-step too"
        )
        raise MegaSRError(f"{folder}: not an exported adapter, it lacks {WEIGHTS} or {CONFIG}; {hint}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        if config["format"] != FORMAT:
            raise MegaSRError(
                f"{folder}: its format is {config['format']}, this version reads {FORMAT}; export the run again"
            )
        held = {"hyper_parameters": dict(config["module"]), "prior_fingerprint": config["prior_fingerprint"]}
        state = _read_weights(folder / WEIGHTS, config.get("sha256"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MegaSRError(f"cannot read the exported adapter {folder}: {type(error).__name__}: {error}") from error
    if prior is None and (folder / PRIOR).is_dir():
        prior = str(folder / PRIOR)
    checkpoint = {"state_dict": state, "own_modules": config.get("own_modules"), **held}
    return build_from_state(MegaSR, checkpoint, folder, prior, {})


def _read_weights(path: Path, sha256: str | None) -> dict[str, torch.Tensor]:
    """Name -> tensor of any dtype. Folders of older versions have no sha256.

    Raises:
        OSError: the file has changed, or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if sha256 is not None and file_sha256(path) != sha256:
        raise OSError(f"{path} was changed after it was written")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error


def is_exported(folder: Path) -> bool:
    """Whether a folder looks like one that `save` wrote."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def _config(system: MegaSR) -> dict[str, Any]:
    settings = {**system.settings, "init": None}  # where training started: a place on the machine
    return {
        "format": FORMAT,
        "prior_fingerprint": system.prior_fingerprint,
        "own_modules": system.own_modules,
        "module": settings,
        "made_with": provenance("none")["versions"],
    }


def _copy_prior(source: Path, target: Path) -> None:
    target.mkdir()
    shutil.copy(source / "model_index.json", target)
    for part in _PRIOR_PARTS:
        for folder in source.glob(part):
            shutil.copytree(folder, target / folder.name)


def _card(system: MegaSR, trained: int, include_prior: bool) -> str:
    sampler, adapter = system.sampler, system.adapter
    guidance = ", ".join(guidance.name for guidance in system.network.guidance) or "none"
    solver = sampler.solver or ("euler" if isinstance(system.prior.schedule, Flow) else "ddim")
    words = ", ".join(name for name, on in (("tags", adapter.text), ("image tokens", adapter.image)) if on) or "none"
    where = "a copy is in `prior/`" if include_prior else "not included"
    return f"""---
library_name: megasr
tags: [image-super-resolution, diffusion]
---
# An adapter for image super-resolution

Made by megasr: {trained:,} trained parameters on a frozen text-to-image prior. Architecture: MegaSR (arXiv 2503.08096),
rebuilt from its figure; not the paper's weights.

| | |
|---|---|
| prior | `{system.settings["prior"]}`, fingerprint {system.prior_fingerprint}, {where} |
| scale factor | {system.scale_factor} |
| guidance | {guidance} |
| semantics | {words} |
| sampler | {solver}, {sampler.num_steps} steps, guidance_scale {sampler.guidance_scale:g} |

```python
from megasr import MegaSRPipeline

pipeline = MegaSRPipeline.from_pretrained("path/to/this/folder")
sr = pipeline(image).images[0]
```

The prior's licence holds for its outputs. What the adapter was trained on, and how well it restores, its maker may add.
"""
