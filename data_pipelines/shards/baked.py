"""Shards with baked degradations, maps and tokens."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data_pipelines.degradations.cpu import sharpen
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.mixture import permuted
from data_pipelines.samples import Sample, Source, UnusableSampleError, crop_sample, names_fingerprint
from data_pipelines.shards.manifest import MANIFEST, Manifest
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.storage import open_plain
from data_pipelines.shards.tar import (
    PARAMS_FIELD,
    DamageError,
    decode_map,
    image_field,
    index_name,
    load_index,
    map_field,
    members_of,
    parts_of,
)
from megasr.errors import MegaSRError, UsageError
from megasr.images import decode_image, from_uint8, to_uint8

_MEASURED = 32  # images that are decoded for their size


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a local shard set.

    Raises:
        MegaSRError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        with open_plain(path) as file:
            return Manifest.from_json(file.read().decode(), str(path))
    except FileNotFoundError as error:
        raise MegaSRError(
            f"{path}: no such file; a set that was interrupted is finished by running its command again, "
            "and `megasr shards index` makes one for tars of others"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MegaSRError(f"{path}: cannot be read: {error}") from error


def describe(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, value) of everything worth knowing of a shard set.

    Raises:
        MegaSRError: the manifest, an index or an image that is looked at cannot be read.
    """
    manifest = read_manifest(folder)
    yield "samples", f"{manifest.samples}"
    yield "shards", f"{len(manifest.shards)}"
    yield "bytes", f"{manifest.bytes} ({manifest.bytes / 2**20:.1f} MiB)"
    for name, count in manifest.fields.items():
        yield f"field {name}", f"{count}"
    sizes = list(_image_sizes(folder, manifest))
    if sizes:
        width, height = (sum(side) / len(sizes) for side in zip(*sizes, strict=True))
        yield "mean image size", f"{width:.0f}x{height:.0f} px (of {len(sizes)} images)"
    yield "licence", manifest.licence
    yield "command", manifest.command
    yield "made", f"{manifest.created} by megasr {manifest.version}"
    yield "dropped", f"{sum(manifest.dropped.values())}"
    for reason, count in manifest.dropped.items():
        yield f"  {reason}", f"{count}"


def _image_sizes(folder: Path, manifest: Manifest) -> Iterator[tuple[int, int]]:
    """(width, height) of images from the beginnings of shards all over the set."""
    shards = manifest.shards[:: max(1, len(manifest.shards) // _MEASURED)]
    each = max(1, _MEASURED // max(1, len(shards)))
    for shard in shards[:_MEASURED]:
        path = folder / index_name(shard.name)
        try:
            with open_plain(path) as file:
                samples = load_index(file.read().decode(), str(path))[:each]
            with open_plain(folder / shard.name) as file:
                for sample in samples:
                    parts_of(members_of(sample), os.fstat(file.fileno()).st_size)  # lies inside the tar
                    if (name := image_field(sample)) is not None:
                        offset, size = sample.files[name]
                        file.seek(offset)
                        height, width = decode_image(file.read(size), f"{sample.key} of {shard.name}").shape[:2]
                        yield width, height
        except (OSError, UnicodeDecodeError, DamageError) as error:
            raise MegaSRError(f"{folder}, {shard.name}: {error}; `megasr shards verify` says more") from error


BAKED_FORMAT = "megasr-baked-1"
BAKED = "baked.json"
LQ_FIELD, TOKENS_FIELD, LATENTS_FIELD = "lq.png", "tokens.npy", "latents.npy"


@dataclass(frozen=True)
class BakeOptions:
    """What decides the content of a baked variant. Together with the originals it determines every byte.

    Args:
        degradation: name of the preset that makes lq.
        scale_factor: size of hq over size of lq.
        crop_size_px: height and width of hq.
        usm_target: sharpen hq before lq is made of it.
        maps: guidance types whose maps are baked, made from lq as training would.
        tokens: what makes the image tokens of lq ("" bakes none).
        latents: fingerprint of the prior whose VAE makes the latents of hq ("" bakes none).
        seed: of crops and degradations.
        extractors: guidance type -> the weights of the network that makes its maps (identify_source); bake fills it in.
    """

    degradation: str = "realesrgan_strong"
    scale_factor: int = 4
    crop_size_px: int = 512
    usm_target: bool = False
    maps: tuple[str, ...] = ()
    tokens: str = ""
    latents: str = ""
    seed: int = 0
    extractors: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        get_degradation(self.degradation, self.scale_factor)
        if self.crop_size_px < 16 or self.crop_size_px % self.scale_factor:
            raise UsageError(
                f"crop_size_px {self.crop_size_px} is not a multiple of scale_factor {self.scale_factor}, or below 16"
            )
        if len(set(self.maps)) < len(self.maps):
            raise UsageError(f"maps name a guidance type twice: {', '.join(self.maps)}")


def dump_options(options: BakeOptions, originals: str) -> str:
    """The text of baked.json.

    Args:
        options: of the set.
        originals: fingerprint of the shard set that it was made from (originals_fingerprint).
    """
    content = {"format": BAKED_FORMAT, "originals": originals, "options": asdict(options)}
    return json.dumps(content, indent=2) + "\n"


def load_options(text: str, where: str) -> tuple[BakeOptions, str]:
    """(options, fingerprint of the originals) of the baked.json at `where`.

    Raises:
        MegaSRError: it is something else.
    """
    try:
        content = json.loads(text)
        if content["format"] != BAKED_FORMAT:
            raise MegaSRError(f"{where}: format is {content['format']!r}, this version reads {BAKED_FORMAT!r}")
        options = content["options"] | {"maps": tuple(content["options"]["maps"])}
        return BakeOptions(**options), str(content["originals"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MegaSRError(f"{where}: not the description of a baked set ({error!r}); bake it again") from error


def cut_variant(sample: Sample, options: BakeOptions, variant: int) -> Sample:
    """The crop of an image that variant `variant` shows: hq, tags and key."""
    whole = replace(sample, maps={})  # maps of the original are those of hq; those of lq are made anew
    crop = crop_sample(whole, options.crop_size_px, options.seed, sample.key, "variant", variant)
    if options.usm_target:
        crop = replace(crop, hq=sharpen(crop.hq))
    return replace(crop, key=f"{sample.key}/v{variant}")


class BakedSource:
    """Reads variants of a baked set.

    Args:
        originals: the shard set.
        name: of the baked set below it.
        images: the same images in the same order, where some are to be left out; None takes the originals.

    Raises:
        MegaSRError: it is not there, or was made from other originals.
    """

    def __init__(self, originals: ShardSource, name: str, images: Source | None = None) -> None:
        self.originals, self.images = originals, images or originals
        self.baked = _open(originals, baked_url(originals.url, name))
        where = f"{self.baked.url}: {BAKED}"
        self.options, made_from = load_options(self.baked.storage.read_all(BAKED).decode(), where)
        if made_from != originals_fingerprint(originals):
            raise MegaSRError(f"{where}: was baked from other originals than {originals.url} holds; bake it again")
        self.variants, rest = divmod(len(self.baked), len(originals))
        if rest or not self.variants:
            raise MegaSRError(f"{where}: holds {len(self.baked)} samples, no multiple of {len(originals)} originals")

    def read(self, index: int, variant: int) -> Sample:
        """Variant `variant` of image `index`, as on-line training would have made it.

        Raises:
            UnusableSampleError: the original was unusable when it was baked, or one of both is damaged.
        """
        key, files = self.baked.files(variant * len(self.originals) + index)
        try:
            params = json.loads(files[PARAMS_FIELD])
            if "unusable" in params:
                raise UnusableSampleError(key, params["unusable"], damaged=params["damaged"])
            crop = cut_variant(self.images.read(index), self.options, variant)
            lq = from_uint8(_decode_lq(files[LQ_FIELD]))
            size = self.options.crop_size_px
            maps = {name: decode_map(files[map_field(name)], size, size) for name in self.options.maps}
            tokens = load_array(files[TOKENS_FIELD]) if self.options.tokens else None
            latents = load_array(files[LATENTS_FIELD]) if self.options.latents else None
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise UnusableSampleError(key, "damaged variant", repr(error)) from error
        return replace(crop, lq=lq, degradation=params, maps=maps, image_tokens=tokens, latents=latents)


class BakedDraw:
    """The variants that a training draw shows (see data_pipelines.samples.Source): all K of an image in K epochs.

    Args:
        source: of the variants.
        draw: counted from the start of training.
        seed: of the order of the variants.
    """

    def __init__(self, source: BakedSource, draw: int, seed: int) -> None:
        self.source, self.draw, self.seed = source, draw, seed

    @property
    def fingerprint(self) -> str:
        """Of the originals."""
        return self.source.originals.fingerprint

    def __len__(self) -> int:
        return len(self.source.originals)

    def read(self, index: int) -> Sample:
        """See BakedSource.read."""
        turn, place = divmod(self.draw // len(self), self.source.variants)
        return self.source.read(index, permuted(place, self.source.variants, self.seed, "variant", index, turn))

    def order(self, draw: int, seed: int) -> int:
        """The order of the originals."""
        return self.source.originals.order(draw, seed)


def _decode_lq(content: bytes) -> np.ndarray:
    try:
        return decode_image(content, LQ_FIELD)
    except MegaSRError as error:
        raise ValueError(str(error)) from error


def _open(originals: ShardSource, url: str) -> ShardSource:
    """The baked set with room for the indices of all variants of the originals that are read at a time."""
    baked = ShardSource(url, originals.cache_dir, originals.cache_gb)
    variants = max(1, len(baked) // max(1, len(originals)))
    return ShardSource(url, originals.cache_dir, originals.cache_gb, originals.draws.window * variants)


def baked_url(url: str, name: str) -> str:
    """Where the baked set `name` of the shard set at `url` lies.

    Raises:
        UsageError: the name is no plain file name.
    """
    if not name or name.startswith(".") or "/" in name:
        raise UsageError(f"{name!r} is not the name of a baked set: a folder below {url.rstrip('/')}/baked")
    if url.startswith("pipe:"):
        return url.replace("{name}", f"baked/{name}/{{name}}")
    return f"{url.rstrip('/')}/baked/{name}"


def originals_fingerprint(source: ShardSource) -> str:
    """What tells whether a baked set belongs to a shard set: the hash of its tars."""
    return names_fingerprint(f"{shard.name} {shard.samples} {shard.sha256}" for shard in source.manifest.shards)


def dump_array(values: torch.Tensor) -> bytes:
    """A tensor as an .npy file."""
    content = io.BytesIO()
    np.save(content, values.numpy())
    return content.getvalue()


def load_array(content: bytes) -> torch.Tensor:
    """The tensor of an .npy file.

    Raises:
        ValueError: it is none.
    """
    try:
        return torch.from_numpy(np.load(io.BytesIO(content)))
    except (TypeError, MemoryError, EOFError) as error:  # an archive, texts, or a header that claims terabytes
        raise ValueError(f"no array of numbers ({error})") from error


def png(image: np.ndarray) -> bytes:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 RGB -> PNG."""
    channels = image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(channels), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return encoded.tobytes()


def dump_variant(lq: torch.Tensor, params: dict[str, Any], maps: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Field -> content of one variant: lq without loss, maps at 8 bits."""
    files = {PARAMS_FIELD: json.dumps(params).encode(), LQ_FIELD: png(to_uint8(lq))}
    for name, value in sorted(maps.items()):
        levels = (value.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        files[map_field(name)] = png(levels)
    return files
