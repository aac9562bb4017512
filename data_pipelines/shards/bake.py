"""Writes baked variants (see data_pipelines.shards.baked). Adding a variant leaves the tars of the others alone."""

from __future__ import annotations

import functools
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.samples import Sample, UnusableSampleError
from data_pipelines.shards.baked import (
    BAKED,
    LATENTS_FIELD,
    TOKENS_FIELD,
    BakeOptions,
    baked_url,
    cut_variant,
    dump_array,
    dump_options,
    dump_variant,
    load_options,
    originals_fingerprint,
)
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry
from data_pipelines.shards.plan import Progress, map_ordered, no_progress
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import PARAMS_FIELD, finished_tar, write_tar
from megasr import __version__
from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.files import locked_folder, remove_parts, write_whole
from megasr.guidance.extract import extract_guidance
from megasr.guidance.registry import resolve_guidance
from megasr.guidance.sources import ExtractorConfig, Networks, identify_source
from megasr.images import from_uint8, upsample_lq

# (1, 3, H, W) in [0, 1]: lq_up -> image tokens (1, N, D), or hq -> latents (1, C, h, w)
Encoder = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class VariantJob:
    """One tar to write: one variant of all samples of one original tar.

    Args:
        path: of the tar.
        shards: folder of the originals.
        begin: index of the first image.
        end: index after the last one.
        variant: its number.
        options: see BakeOptions.
        load_tokens: makes the encoder of the image tokens, once per process; None when none are baked.
        load_latents: the same for the latents.
        sources: guidance type -> where the weights of its network come from (see ExtractorConfig).
    """

    path: Path
    shards: str
    begin: int
    end: int
    variant: int
    options: BakeOptions
    load_tokens: Callable[[], Encoder] | None
    load_latents: Callable[[], Encoder] | None
    sources: tuple[tuple[str, str], ...]


def bake(
    shards: Path,
    name: str,
    options: BakeOptions,
    variants: int,
    load_tokens: Callable[[], Encoder] | None = None,
    workers: int = 1,
    progress: Progress = no_progress,
    sources: Mapping[str, str] | None = None,
    load_latents: Callable[[], Encoder] | None = None,
) -> Manifest:
    """Write variants 0 to `variants` - 1 into SHARDS/baked/NAME, leaving those that are there as they are.

    Args:
        shards: folder of the originals.
        name: of the baked set.
        options: what decides the content.
        variants: how many there shall be.
        load_tokens: makes the encoder of the image tokens; needed with options.tokens, picklable.
        workers: processes.
        progress: is told what is done.
        sources: guidance type -> where the weights of its network come from; see ExtractorConfig.
        load_latents: makes the encoder of the latents; needed with options.latents, picklable.

    Raises:
        UsageError: a value cannot be used, or the set was begun with other options.
        MegaSRError: the originals or the disk fail. Running it again goes on.
    """
    _check_request(options, variants, load_tokens, load_latents)
    sources = dict(sources or {})
    options = _with_extractors(options, sources)
    _forget_earlier_calls()
    originals = ShardSource(str(shards))
    output = Path(baked_url(str(shards), name))
    with locked_folder(output):
        remove_parts(output)
        _same_options(output, options, originals_fingerprint(originals))
        _check_not_fewer(output, variants, len(originals))
        given = options, load_tokens, load_latents, tuple(sorted(sources.items()))
        jobs = [VariantJob(*place, *given) for place in _places(originals, output, variants)]
        entries: list[ShardEntry] = []
        fields: Counter[str] = Counter()
        for entry, names in map_ordered(write_variant, jobs, workers):
            entries.append(entry)
            fields += names
            progress(
                "baking", sum(e.samples for e in entries), variants * len(originals), sum(e.bytes for e in entries)
            )
        manifest = Manifest(
            shards=tuple(entries),
            fields=dict(sorted(fields.items())),
            licence=originals.manifest.licence,
            command=_command(shards, name, options, variants, sources),
            version=__version__,
            created=date.today().isoformat(),
            dropped={},
        )
        write_whole(output / MANIFEST, manifest.to_json().encode(), durable=True)
    return manifest


def _check_request(
    options: BakeOptions,
    variants: int,
    load_tokens: Callable[[], Encoder] | None,
    load_latents: Callable[[], Encoder] | None,
) -> None:
    if variants < 1:
        raise UsageError(f"variants must be at least 1, got {variants}")
    for name, value, load in (("tokens", options.tokens, load_tokens), ("latents", options.latents, load_latents)):
        if bool(value) != (load is not None):
            raise UsageError(f"{name} are {value!r}, and there is {'an' if load else 'no'} encoder for them")


def _forget_earlier_calls() -> None:
    """A call before in this process may have read other shards, or other weights, in these places."""
    _source.cache_clear()
    _networks.cache_clear()
    _ENCODERS.clear()


def _with_extractors(options: BakeOptions, sources: Mapping[str, str]) -> BakeOptions:
    """The options with the weights that make the maps. A type not made from lq, or an idle source, is an error."""
    types = resolve_guidance(options.maps)
    for guidance in types:
        if guidance.source != "lq":
            raise UsageError(
                f"guidance {guidance.name} is made from {guidance.source}, not from lq: it needs no baking"
            )
    config = ExtractorConfig(sources)
    config.check_used(types)
    found = {guidance.name: identify_source(config.source_of(guidance)) for guidance in types if guidance.load}
    return replace(options, extractors=found)


def _same_options(output: Path, options: BakeOptions, fingerprint: str) -> None:
    path = output / BAKED
    if not path.is_file():
        write_whole(path, dump_options(options, fingerprint).encode(), durable=True)
        return
    old, made_from = load_options(path.read_text(), str(path))
    before, now = asdict(old), asdict(options)
    differing = [f"{key} was {before[key]!r}, is {now[key]!r}" for key in now if before[key] != now[key]]
    if made_from != fingerprint:
        differing.append("the original shards are others")
    if differing:
        raise UsageError(f"{output} was begun as another set: {'; '.join(differing)}. Give another --name")


def _check_not_fewer(output: Path, variants: int, images: int) -> None:
    path = output / MANIFEST
    if path.is_file():
        present = Manifest.from_json(path.read_text(), str(path)).samples // images
        if variants < present:
            raise UsageError(f"{output} holds {present} variants already, {variants} would lose some")


def _places(originals: ShardSource, output: Path, variants: int) -> Iterator[tuple[Path, str, int, int, int]]:
    """(path, shards, begin, end, variant) of every tar."""
    for variant in range(variants):
        begin = 0
        for shard in originals.manifest.shards:
            path = output / f"{shard.name.removesuffix('.tar')}-v{variant:03d}.tar"
            end = begin + shard.samples
            yield path, originals.url, begin, end, variant
            begin = end


def write_variant(job: VariantJob) -> tuple[ShardEntry, Counter[str]]:
    """Write one tar and its index, unless both are there: (its entry, field -> number of samples).

    Raises:
        MegaSRError: the originals or the disk fail.
    """
    found = finished_tar(job.path)
    if found is None or found[0].samples != job.end - job.begin:
        source = _source(job.shards)
        found = write_tar(job.path, (_variant_files(source, index, job) for index in range(job.begin, job.end)))
    entry, samples = found
    return entry, Counter(name for sample in samples for name in sample.files)


def _variant_files(source: ShardSource, index: int, job: VariantJob) -> tuple[str, dict[str, bytes]]:
    """(key, field -> content). An unusable original leaves its reason: places must stay those of the originals."""
    try:
        whole = source.read(index)
        crop = cut_variant(whole, job.options, job.variant)
    except UnusableSampleError as error:
        return error.key, {PARAMS_FIELD: json.dumps({"unusable": error.reason, "damaged": error.damaged}).encode()}
    return whole.key, _degraded_files(whole.key, crop, job)


def _degraded_files(key: str, crop: Sample, job: VariantJob) -> dict[str, bytes]:
    options = job.options
    degradation = get_degradation(options.degradation, options.scale_factor)
    (params,) = degradation.sample_params(options.seed, [key], job.variant)
    # lq is stored at 8 bits, so what is made of it sees 8 bits too.
    lq = (degradation.apply_image(crop.hq, params).clamp(0, 1) * 255).round() / 255
    batch = SRBatch(keys=[crop.key], hq=from_uint8(crop.hq)[None], lq=lq[None])
    maps = extract_guidance(batch, resolve_guidance(options.maps), options.scale_factor, _networks(job.sources))
    files = dump_variant(lq, params, {name: value[0] for name, value in maps.items()})
    if job.load_tokens is not None:
        tokens = _encoder(options.tokens, job.load_tokens)(upsample_lq(batch["lq"], options.scale_factor))[0]
        files[TOKENS_FIELD] = dump_array(tokens.half())
    if job.load_latents is not None:
        latents = _encoder(options.latents, job.load_latents)(batch["hq"])[0]
        files[LATENTS_FIELD] = dump_array(latents.float())  # half precision would not be what on-line training sees
    return files


@functools.lru_cache(1)
def _source(shards: str) -> ShardSource:
    return ShardSource(shards)


@functools.lru_cache(1)
def _networks(sources: tuple[tuple[str, str], ...]) -> Networks:
    """Loaded once per worker process."""
    return Networks(ExtractorConfig(dict(sources)))


def _encoder(name: str, load: Callable[[], Encoder]) -> Encoder:
    """The encoder of this name: a worker process makes it for its first tar and keeps it for the others."""
    if name not in _ENCODERS:
        _ENCODERS[name] = load()
    return _ENCODERS[name]


_ENCODERS: dict[str, Encoder] = {}


def _command(shards: Path, name: str, options: BakeOptions, variants: int, sources: Mapping[str, str]) -> str:
    words = ["megasr", "shards", "bake", str(shards), "--name", name, "--variants", str(variants)]
    words += ["--degradation", options.degradation, "--scale-factor", str(options.scale_factor)]
    words += ["--crop-size", str(options.crop_size_px), "--seed", str(options.seed)]
    words += ["--usm-target"] if options.usm_target else []
    words += ["--maps", *options.maps] if options.maps else []
    words += ["--extractors", *(f"{name}={source}" for name, source in sorted(sources.items()))] if sources else []
    # Which weights, baked.json says by their hash; where they lie is another matter on every machine.
    words += ["--tokens-model", options.tokens.split()[0], "--tokens-weights", "FILE"] if options.tokens else []
    words += ["--latents", "PRIOR"] if options.latents else []
    return shlex.join(words)
