"""Writes baked variants (see data_pipelines.shards.baked). Adding a variant leaves the tars of the others alone."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.samples import Sample, UnusableSampleError
from data_pipelines.shards.baked import (
    BAKED,
    BakeOptions,
    baked_url,
    cut_variant,
    dump_options,
    load_options,
    originals_fingerprint,
)
from data_pipelines.shards.fields import (
    LATENTS_FIELD,
    LQ_FIELD,
    PARAMS_FIELD,
    TOKENS_FIELD,
    dump_array,
    encode_png,
    map_field,
)
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry, write_manifest
from data_pipelines.shards.parallel import Progress, map_ordered, no_progress
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import finished_tar, write_tar
from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.files import locked_folder, remove_parts, write_whole
from megasr.guidance.extract import ExtractorConfig, Networks, extract_guidance, identify_source
from megasr.guidance.registry import resolve_guidance
from megasr.images import from_uint8, quantise, to_uint8, upsample_lq

# (1, 3, H, W) in [0, 1]: lq_up -> image tokens (1, N, D), or hq -> latents (1, C, h, w)
Encoder = Callable[[torch.Tensor], torch.Tensor]
LoadEncoder = Callable[[], Encoder]


def bake(
    shards: Path,
    name: str,
    options: BakeOptions,
    variants: int,
    load_tokens: LoadEncoder | None = None,
    workers: int = 1,
    progress: Progress = no_progress,
    sources: Mapping[str, str] | None = None,
    load_latents: LoadEncoder | None = None,
) -> Manifest:
    """Write variants 0 to `variants` - 1 into SHARDS/baked/NAME, leaving those that are there as they are.

    Args:
        shards: folder of the originals.
        name: of the baked set.
        options: what decides the content.
        variants: how many there shall be.
        load_tokens: loads the encoder of the image tokens, once per worker; needed with options.tokens.
        workers: processes.
        progress: called with what is done.
        sources: guidance type -> where the weights of its network come from; see ExtractorConfig.
        load_latents: loads the encoder of the latents; needed with options.latents.

    Raises:
        UsageError: a value cannot be used, or the set was begun with other options.
        MegaSRError: the originals or the disk fail. Running it again goes on.
    """
    if variants < 1:
        raise UsageError(f"variants must be at least 1, got {variants}")
    for kind, value, load in (("tokens", options.tokens, load_tokens), ("latents", options.latents, load_latents)):
        if bool(value) != (load is not None):
            raise UsageError(f"{kind} are {value!r}, and there is {'an' if load else 'no'} encoder for them")
    sources = dict(sources or {})
    options = _with_extractors(options, sources)
    originals = ShardSource(str(shards))
    baker = _Baker(originals, options, sources, load_tokens, load_latents)
    output = Path(baked_url(str(shards), name))
    with locked_folder(output):
        remove_parts(output)
        _check_same(output, options, variants, originals)
        entries: list[ShardEntry] = []
        fields: Counter[str] = Counter()
        for entry, counts in map_ordered(baker.write, _jobs(originals, output, variants), workers):
            entries.append(entry)
            fields += counts
            done, size = sum(e.samples for e in entries), sum(e.bytes for e in entries)
            progress("baking", done, variants * len(originals), size)
        command = _command(shards, name, options, variants, sources)
        return write_manifest(output, entries, fields, originals.manifest.licence, command)


def _with_extractors(options: BakeOptions, sources: Mapping[str, str]) -> BakeOptions:
    """The options with the weights that make the maps. A type not made from lq, or an unused source, is an error."""
    types = resolve_guidance(options.maps)
    for guidance in types:
        if guidance.source != "lq":
            raise UsageError(
                f"guidance {guidance.name} is made from {guidance.source}, not from lq: it needs no baking"
            )
    config = ExtractorConfig(sources)
    config.check_used(types)
    weights = {guidance.name: identify_source(config.source_of(guidance)) for guidance in types if guidance.load}
    return replace(options, extractors=weights)


def _check_same(output: Path, options: BakeOptions, variants: int, originals: ShardSource) -> None:
    """Begin the set, or check that it was begun with the same options and has no more variants."""
    path, fingerprint = output / BAKED, originals_fingerprint(originals)
    if not path.is_file():
        write_whole(path, dump_options(options, fingerprint).encode(), durable=True)
    old, made_from = load_options(path.read_text(), str(path))
    before, now = asdict(old), asdict(options)
    differing = [f"{key} was {before[key]!r}, is {now[key]!r}" for key in now if before[key] != now[key]]
    if made_from != fingerprint:
        differing.append("the original shards are others")
    if differing:
        raise UsageError(f"{output} was begun as another set: {'; '.join(differing)}. Give another --name")
    if (output / MANIFEST).is_file():
        present = Manifest.from_json((output / MANIFEST).read_text(), str(output / MANIFEST)).samples // len(originals)
        if variants < present:
            raise UsageError(f"{output} holds {present} variants already, {variants} would lose some")


def _jobs(originals: ShardSource, output: Path, variants: int) -> list[tuple[Path, int, range]]:
    """(path, variant, images) of every tar: one variant of one original tar."""
    shards = list(zip(originals.manifest.shards, originals.draws.firsts, strict=False))
    return [
        (output / f"{shard.name.removesuffix('.tar')}-v{variant:03d}.tar", variant, range(first, first + shard.samples))
        for variant in range(variants)
        for shard, first in shards
    ]


class _Baker:
    """Writes the tars of one set. Each worker process loads networks and encoders when it first needs them."""

    def __init__(
        self,
        originals: ShardSource,
        options: BakeOptions,
        sources: Mapping[str, str],
        load_tokens: LoadEncoder | None,
        load_latents: LoadEncoder | None,
    ) -> None:
        self.originals, self.options, self.sources = originals, options, sources
        self.load_tokens, self.load_latents = load_tokens, load_latents

    @cached_property
    def networks(self) -> Networks:
        return Networks(ExtractorConfig(dict(self.sources)))

    @cached_property
    def encode_tokens(self) -> Encoder | None:
        return self.load_tokens and self.load_tokens()

    @cached_property
    def encode_latents(self) -> Encoder | None:
        return self.load_latents and self.load_latents()

    def write(self, job: tuple[Path, int, range]) -> tuple[ShardEntry, Counter[str]]:
        """Write one tar and its index, unless both are there: (its entry, field -> number of samples)."""
        path, variant, images = job
        written = finished_tar(path)
        if written is None or written[0].samples != len(images):
            written = write_tar(path, (self._files(index, variant) for index in images))
        entry, samples = written
        return entry, Counter(name for sample in samples for name in sample.files)

    def _files(self, index: int, variant: int) -> tuple[str, dict[str, bytes]]:
        """(key, field -> content). An unusable original leaves its reason: places must stay those of the originals."""
        try:
            sample = self.originals.read(index)
            return sample.key, self._degrade(sample, cut_variant(sample, self.options, variant), variant)
        except UnusableSampleError as error:
            return error.key, {PARAMS_FIELD: json.dumps({"unusable": error.reason, "damaged": error.damaged}).encode()}

    def _degrade(self, sample: Sample, crop: Sample, variant: int) -> dict[str, bytes]:
        options = self.options
        degradation = get_degradation(options.degradation, options.scale_factor)
        (params,) = degradation.sample_params(options.seed, [sample.key], variant)
        lq = quantise(degradation.apply_image(crop.hq, params))  # as it is stored
        files = {PARAMS_FIELD: json.dumps(params).encode(), LQ_FIELD: encode_png(to_uint8(lq))}
        batch = SRBatch(keys=[crop.key], hq=from_uint8(crop.hq)[None], lq=lq[None])
        maps = extract_guidance(batch, resolve_guidance(options.maps), options.scale_factor, self.networks)
        files |= {map_field(guidance): encode_png(to_uint8(values[0])) for guidance, values in sorted(maps.items())}
        if self.encode_tokens is not None:
            lq_up = upsample_lq(batch["lq"], options.scale_factor)
            files[TOKENS_FIELD] = dump_array(self.encode_tokens(lq_up)[0].half())
        if self.encode_latents is not None:  # in half precision they would not be what on-line training sees
            files[LATENTS_FIELD] = dump_array(self.encode_latents(batch["hq"])[0].float())
        return files


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
