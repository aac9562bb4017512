"""`megasr shards pack | bake | verify | info | index`: image folders as webdataset tars."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.console import progress_bars
from megasr.errors import MegaSRError, UsageError, printable

if TYPE_CHECKING:
    from data_pipelines.shards.manifest import Manifest
    from data_pipelines.shards.parallel import Progress


def add_parser(commands: Any) -> None:
    """Declare `shards` and its actions."""
    parser = commands.add_parser("shards", help="pack image folders into shards, and check them", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    pack = _add_pack(actions)
    bake = _add_bake(actions)
    verify = actions.add_parser("verify", help="find every damaged, missing or duplicated sample")
    info = actions.add_parser("info", help="say what a shard set holds and where it comes from")
    index = actions.add_parser("index", help="index webdataset tars that others have made")
    for action in (pack, index):
        about = "under which the images may be used; `unknown` where nobody knows"
        action.add_argument("--licence", metavar="TEXT", type=_licence, required=True, help=about)
    for action in (bake, verify, info, index):
        action.add_argument("folder", metavar="DIR", type=Path, help="folder of the shards")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for action in (pack, bake, verify, index):
        action.add_argument("--workers", type=int, default=cores, help=f"processes (default: one per core, {cores})")
    runs = {pack: run_pack, bake: run_bake, verify: run_verify, info: run_info, index: run_index}
    for action, run in runs.items():
        action.set_defaults(run=run, passes_options_on=False)


def _add_pack(actions: Any) -> argparse.ArgumentParser:
    pack: argparse.ArgumentParser = actions.add_parser(
        "pack",
        help="pack image folders; run it again after an interruption, it goes on",
        description="Images are stored as they are. PHOTO.txt beside PHOTO.jpg holds its tags. "
        "What is dropped, and why, is listed in DIR/dropped.csv.",
    )
    add = pack.add_argument
    add("folders", metavar="FOLDER", nargs="+", help="folder of images, searched recursively")
    add("--output", metavar="DIR", type=Path, required=True, help="folder for the shards")
    add("--samples-per-shard", metavar="N", type=int, default=1000, help="(default: 1000)")
    add("--min-size", metavar="PX", type=int, default=0, help="drop images with a shorter side below")
    add("--min-sharpness", metavar="X", type=float, default=0.0, help="drop images that are less sharp")
    add("--map", metavar="NAME=FOLDER", action="append", default=[], help="a guidance map FOLDER/KEY.png per image")
    add("--seed", type=int, default=0, help="of the order in which images are mixed (default: 0)")
    return pack


def _add_bake(actions: Any) -> argparse.ArgumentParser:
    bake: argparse.ArgumentParser = actions.add_parser(
        "bake",
        help="write degraded variants of a shard set; asking for more later keeps those that are there",
        description="Variants lie in DIR/baked/NAME. ShardDataModule reads them with baked=NAME.",
    )
    add = bake.add_argument
    add("--variants", metavar="K", type=int, required=True, help="variants of every image")
    add("--name", help="of the baked set (default: DEGRADATION-xSCALE-CROPpx)")
    add("--degradation", default="realesrgan_strong", help="preset (default: realesrgan_strong)")
    add("--scale-factor", type=int, default=4, help="size of hq over size of lq (default: 4)")
    add("--crop-size", metavar="PX", type=int, default=512, help="of hq (default: 512)")
    add("--usm-target", action="store_true", help="sharpen hq before it is degraded")
    add("--maps", metavar="TYPE", nargs="*", default=[], help="guidance types whose maps are baked")
    add("--extractors", metavar="TYPE=SOURCE", nargs="*", default=[], help="weights for these maps (default: shipped)")
    add("--tokens-weights", metavar="FILE", type=Path, help="OpenCLIP weights: bakes image tokens of lq")
    add("--tokens-model", default="ViT-H-14", help="OpenCLIP model of these weights (default: ViT-H-14)")
    add("--latents", metavar="PRIOR", help="bake the latents of hq: `tiny`, `sd21-base` or a folder")
    add("--seed", type=int, default=0, help="of crops and degradations (default: 0)")
    return bake


def run_pack(arguments: argparse.Namespace) -> None:
    """Pack, and say what was made and what was dropped."""
    from data_pipelines.filters import describe_drops
    from data_pipelines.shards.pack import DROPPED, PackOptions, pack

    maps = _pairs("--map", "NAME=FOLDER", arguments.map)
    for folder in maps.values():
        if not Path(folder).is_dir():
            raise UsageError(f"--map: {folder} is no folder")
    options = PackOptions(
        folders=tuple(arguments.folders),
        licence=arguments.licence,
        samples_per_shard=arguments.samples_per_shard,
        min_size_px=arguments.min_size,
        min_sharpness=arguments.min_sharpness,
        maps=maps,
        seed=arguments.seed,
    )
    with _progress() as progress:
        manifest = pack(options, arguments.output, _workers(arguments), progress)
    print(f"{arguments.output}: {_size(manifest)}")
    if manifest.dropped:
        total = manifest.samples + sum(manifest.dropped.values())
        print(f"{describe_drops(manifest.dropped, total)}; each is listed in {arguments.output / DROPPED}")


def run_bake(arguments: argparse.Namespace) -> None:
    """Bake, and say what there is."""
    from data_pipelines.shards.bake import bake
    from data_pipelines.shards.baked import BakeOptions

    weights, prior = arguments.tokens_weights, arguments.latents
    options = BakeOptions(
        degradation=arguments.degradation,
        scale_factor=arguments.scale_factor,
        crop_size_px=arguments.crop_size,
        usm_target=arguments.usm_target,
        maps=tuple(arguments.maps),
        tokens="" if weights is None else tower_name(arguments.tokens_model, weights),
        latents="" if prior is None else prior_name(prior),
        seed=arguments.seed,
    )
    name = arguments.name or f"{options.degradation}-x{options.scale_factor}-{options.crop_size_px}px"
    with _progress() as progress:
        manifest = bake(
            arguments.folder,
            name,
            options,
            arguments.variants,
            load_tokens=None if weights is None else partial(load_vision, arguments.tokens_model, str(weights)),
            workers=_workers(arguments),
            progress=progress,
            sources=_pairs("--extractors", "TYPE=SOURCE", arguments.extractors),
            load_latents=None if prior is None else partial(load_latents, prior),
        )
    print(f"{arguments.folder / 'baked' / name}: {arguments.variants} variants, {_size(manifest)}")


def run_verify(arguments: argparse.Namespace) -> None:
    """Print one line per finding and the counts per kind."""
    from data_pipelines.shards.verify import verify

    with _progress() as progress:
        findings = verify(arguments.folder, _workers(arguments), progress)
    if not findings:
        print(f"{arguments.folder}: nothing is damaged, missing or there twice")
        return
    width = max(len(finding.kind) for finding in findings)
    for finding in findings:
        rest = "  ".join(filter(None, (finding.where, finding.key, finding.detail)))
        print(printable(f"{finding.kind:<{width}}  {rest}"))
    print()
    for kind, count in sorted(Counter(finding.kind for finding in findings).items()):
        print(f"{kind:<{width}}  {count}")
    raise MegaSRError(f"{arguments.folder}: {len(findings)} findings")


def run_info(arguments: argparse.Namespace) -> None:
    """Print what the set holds, one aligned line each."""
    from data_pipelines.shards.verify import describe

    rows = list(describe(arguments.folder))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(printable(f"{name:<{width}}  {value}"))


def run_index(arguments: argparse.Namespace) -> None:
    """Index the tars of a folder and say what is in them."""
    from data_pipelines.shards.foreign import index_shards

    with _progress() as progress:
        manifest = index_shards(arguments.folder, arguments.licence, _workers(arguments), progress)
    fields = ", ".join(f"{count} {name}" for name, count in manifest.fields.items())
    print(printable(f"{arguments.folder}: {_size(manifest)} ({fields})"))


def _licence(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; write `unknown` where nobody knows it")
    return text


def _size(manifest: Manifest) -> str:
    return f"{manifest.samples} samples in {len(manifest.shards)} shards, {manifest.bytes / 2**20:.1f} MiB"


def tower_name(model: str, weights: Path) -> str:
    """What baked tokens are told apart by: the OpenCLIP model, and the beginning of its weights' sha256."""
    from megasr.files import file_sha256

    return f"{model} {file_sha256(weights)[:16]}"


def load_vision(model: str, weights: str) -> Any:
    """The OpenCLIP encoder that makes image tokens; called in every worker process."""
    from megasr.semantics.clip import VisionConfig, VisionEncoder

    return VisionEncoder(VisionConfig(weights, model))


def prior_name(source: str) -> str:
    """What baked latents are told apart by: the fingerprint of the prior."""
    from megasr.prior import load_prior

    return load_prior(source).fingerprint()


def load_latents(source: str) -> Any:
    """The prior's encoder of hq; called in every worker process."""
    from megasr.prior import load_prior

    return load_prior(source).encode


def _pairs(option: str, form: str, values: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in values:
        name, _, value = pair.partition("=")
        if not value:
            raise UsageError(f"{option} {pair}: should be {form}")
        if name in pairs:
            raise UsageError(f"{option} {name} is given twice")
        pairs[name] = value
    return pairs


def _workers(arguments: argparse.Namespace) -> int:
    if arguments.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {arguments.workers}")
    return int(arguments.workers)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar per stage on stderr: done of all, MB/s, time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    started: dict[str, float] = {}
    rate = TextColumn("{task.fields[rate]}")
    with progress_bars(BarColumn(), MofNCompleteColumn(), rate) as advance:

        def report(what: str, done: int, total: int, size: int) -> None:
            elapsed = time.monotonic() - started.setdefault(what, time.monotonic())
            advance(what, done, total, rate=f"{size / 1e6 / elapsed:.1f} MB/s" if elapsed > 0 else "")

        yield report
