"""Baked sets: variants of a shard set's images with their degradation, maps, tokens and latents made beforehand."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace

from data_pipelines.degradations.cpu import sharpen
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.mixture import permuted
from data_pipelines.samples import Sample, Source, UnusableSampleError, crop_sample, names_fingerprint
from data_pipelines.shards.fields import (
    LATENTS_FIELD,
    LQ_FIELD,
    PARAMS_FIELD,
    TOKENS_FIELD,
    decode_map,
    load_array,
    map_field,
)
from data_pipelines.shards.reader import ShardSource
from megasr.errors import MegaSRError, UsageError
from megasr.images import decode_image, from_uint8

BAKED_FORMAT = "megasr-baked-1"
BAKED = "baked.json"


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
    """The text of baked.json: the options and the fingerprint of the originals (originals_fingerprint)."""
    return json.dumps({"format": BAKED_FORMAT, "originals": originals, "options": asdict(options)}, indent=2) + "\n"


def load_options(text: str, where: str) -> tuple[BakeOptions, str]:
    """(options, fingerprint of the originals) of the baked.json at `where`; a MegaSRError where it is none."""
    try:
        content = json.loads(text)
        if content["format"] != BAKED_FORMAT:
            raise ValueError(f"format is {content['format']!r}, this version reads {BAKED_FORMAT!r}")
        options = content["options"] | {"maps": tuple(content["options"]["maps"])}
        return BakeOptions(**options), str(content["originals"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MegaSRError(f"{where}: not the description of a baked set ({error}); bake it again") from error


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


def cut_variant(sample: Sample, options: BakeOptions, variant: int) -> Sample:
    """The crop of an image that variant `variant` shows: hq, tags and key. Maps of hq are left out."""
    crop = crop_sample(replace(sample, maps={}), options.crop_size_px, options.seed, sample.key, "variant", variant)
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
        place = baked_url(originals.url, name), originals.cache_dir, originals.cache_gb
        variants = max(1, len(ShardSource(*place)) // max(1, len(originals)))
        self.baked = ShardSource(*place, originals.draws.window * variants)  # room for the indices of all variants
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
            size = self.options.crop_size_px
            return replace(
                crop,
                lq=from_uint8(decode_image(files[LQ_FIELD], LQ_FIELD)),
                degradation=params,
                maps={name: decode_map(files[map_field(name)], size, size) for name in self.options.maps},
                image_tokens=load_array(files[TOKENS_FIELD]) if self.options.tokens else None,
                latents=load_array(files[LATENTS_FIELD]) if self.options.latents else None,
            )
        except UnusableSampleError:
            raise
        except (MegaSRError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise UnusableSampleError(key, "damaged variant", repr(error)) from error


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

    def tags(self, index: int) -> str:
        """Those of the original."""
        return self.source.originals.tags(index)

    def order(self, draw: int, seed: int) -> int:
        """The order of the originals."""
        return self.source.originals.order(draw, seed)
