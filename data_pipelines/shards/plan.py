"""What is packed: sources, their images, the order of the shards, and processes side by side."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_pipelines.filters import ImageFilter
from data_pipelines.folder import index_folder, read_tags
from data_pipelines.mixture import permuted
from data_pipelines.samples import UnusableSampleError
from data_pipelines.shards.tar import TAGS_FIELD, decode_map, digest, map_field
from data_pipelines.workers import use_one_thread
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.registry import is_made_from_lq
from megasr.images import decode_image

Item = TypeVar("Item")
Result = TypeVar("Result")
# (what is being done, items done, items in all, bytes done)
Progress = Callable[[str, int, int, int], None]

_AHEAD = 4  # items per worker that wait; more would only take memory


def no_progress(what: str, done: int, total: int, size: int) -> None:
    """For callers that show nothing."""


def map_ordered(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """function(item) for every item, in order. One worker works in this process.

    Raises:
        MegaSRError: a worker process died, or function raised it.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        try:
            for item in items:
                with _interrupt_later():  # a submission may start a process
                    waiting.append(pool.submit(_interruptible, function, item))
                if len(waiting) >= workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise MegaSRError("a worker process was killed, perhaps for want of memory: try fewer --workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: processes are started with it blocked, until they are ready for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    use_one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next item for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _interruptible(function: Callable[[Item], Result], item: Item) -> Result:
    """Ctrl-C reaches all processes: it ends the work at hand, while an idle worker leaves it to its parent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return function(item)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Verdict:
    """What became of one image.

    Args:
        key: which image.
        digests: field -> digest of its content, the image first; empty when it is dropped.
        size: bytes that were read.
        reason: why it is dropped, the same phrase for all images with this trouble; "" when it is kept.
        detail: more about the reason.
    """

    key: str
    digests: dict[str, str]
    size: int
    reason: str = ""
    detail: str = ""


def find_images(folders: tuple[str, ...]) -> dict[str, Path]:
    """Key -> file of every image; with several folders a key begins with the folder's name.

    Raises:
        UsageError: a folder is missing or empty, or two files would have one key.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        prefix = f"{Path(folder).resolve().name}/" if len(folders) > 1 else ""
        for key, path in index_folder(folder).items():
            if prefix + key in found:
                raise UsageError(f"{found[prefix + key]} and {path} would both be called {prefix + key!r}; rename one")
            found[prefix + key] = path
    return found


def read_fields(key: str, path: Path, maps: Mapping[str, str]) -> dict[str, bytes]:
    """Field -> content of one sample: the image's file as it is, its tags if it has any, its maps.

    Args:
        key: of the sample.
        path: of the image.
        maps: guidance name -> folder that holds KEY.png.

    Raises:
        UnusableSampleError: a file cannot be read.
    """
    contents = {path.suffix[1:].lower(): _read(key, path, "image")}
    try:
        tags = read_tags(path)
    except (MegaSRError, OSError) as error:
        raise UnusableSampleError(key, "unreadable tags", str(error)) from error
    if tags:
        contents[TAGS_FIELD] = tags.encode()
    for name, folder in sorted(maps.items()):
        contents[map_field(name)] = _read(key, Path(folder) / f"{key}.png", f"{name} map")
    return contents


def _read(key: str, path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnusableSampleError(key, f"no {what}", str(path)) from error
    except OSError as error:
        raise UnusableSampleError(key, f"unreadable {what}", str(error)) from error


def judge(maps: Mapping[str, str], keep: ImageFilter, image: tuple[str, Path]) -> Verdict:
    """Read and decode all files of an image, ask the filter, hash what is kept."""
    key, path = image
    size = 0
    try:
        contents = read_fields(key, path, maps)
        size = sum(map(len, contents.values()))
        _check_pixels(key, path, contents, maps, keep)
    except UnusableSampleError as error:
        detail = str(error).removeprefix(f"{key}: {error.reason}")[2:-1]
        return Verdict(key, {}, size, error.reason, detail)
    return Verdict(key, {name: digest(content) for name, content in contents.items()}, size)


def _check_pixels(
    key: str, path: Path, contents: Mapping[str, bytes], maps: Mapping[str, str], keep: ImageFilter
) -> None:
    hq = _decode(key, next(iter(contents.values())), str(path), "image")
    if reason := keep.reason(hq):
        raise UnusableSampleError(key, reason, damaged=False)
    height, width = hq.shape[:2]
    for name in maps:
        try:
            decode_map(contents[map_field(name)], height, width)
        except ValueError as error:
            raise UnusableSampleError(key, f"unusable {name} map", str(error)) from error


def _decode(key: str, content: bytes, where: str, what: str) -> np.ndarray:
    try:
        return decode_image(content, where)
    except MegaSRError as error:
        raise UnusableSampleError(key, f"damaged {what}", str(error)) from error


PLAN_FORMAT = "megasr-shard-plan-1"
PLAN, DROPPED = "plan.json", "dropped.csv"


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of a shard set. Together with the images it determines every byte.

    Args:
        folders: of images, searched recursively.
        licence: under which the images may be used.
        samples_per_shard: the last shard may have fewer.
        min_size_px: images whose shorter side is smaller are dropped.
        min_sharpness: images that are less sharp are dropped, see data_pipelines.filters.
        maps: guidance name -> folder that holds KEY.png for every image.
        seed: of the order, in which images of all folders are mixed.
    """

    folders: tuple[str, ...]
    licence: str
    samples_per_shard: int = 1000
    min_size_px: int = 0
    min_sharpness: float = 0.0
    maps: dict[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UsageError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        ImageFilter(self.min_size_px, self.min_sharpness)  # it knows which values are possible
        for name in self.maps:
            # Not the registry: maps of a type that is registered later can be packed today.
            if not re.fullmatch(r"[a-z0-9_]+", name):
                raise UsageError(f"{name!r} is not the name of a guidance type: lower-case letters, digits and _")
            if is_made_from_lq(name):
                raise UsageError(
                    f"{name} is extracted from lq, and maps beside the originals are made of hq: "
                    f"pack them as oracle_{name}, or bake {name}"
                )


@dataclass(frozen=True)
class Plan:
    """(key, field -> digest) of the samples in the order of the shards; (key, reason, detail) of all other images."""

    options: PackOptions
    samples: list[tuple[str, dict[str, str]]]
    dropped: list[tuple[str, str, str]]

    @property
    def drop_counts(self) -> dict[str, int]:
        """Reason -> number of images."""
        return dict(sorted(Counter(reason for _, reason, _ in self.dropped).items()))

    def to_json(self) -> str:
        """The text of plan.json, one line per image."""
        head = json.dumps({"format": PLAN_FORMAT, "options": asdict(self.options)})
        samples, dropped = (",\n".join(map(json.dumps, rows)) for rows in (self.samples, self.dropped))
        return f'{head[:-1]}, "samples": [\n{samples}\n], "dropped": [\n{dropped}\n]}}\n'

    def dropped_csv(self) -> str:
        """The text of dropped.csv."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("key", "reason", "detail"))
        rows.writerows(self.dropped)
        return text.getvalue()


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:
        MegaSRError: it cannot be read or is no plan.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != PLAN_FORMAT:
            raise MegaSRError(f"{path}: format is {content['format']!r}, this version reads {PLAN_FORMAT!r}")
        options = content["options"] | {"folders": tuple(content["options"]["folders"])}
        samples = [(key, fields) for key, fields in content["samples"]]
        dropped = [(key, reason, detail) for key, reason, detail in content["dropped"]]
        return Plan(PackOptions(**options), samples, dropped)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MegaSRError(f"{path}: not the plan of a shard set ({error!r}); pack into another folder") from error


def make_plan(options: PackOptions, images: Mapping[str, Path], workers: int, progress: Progress) -> Plan:
    """Read, decode, filter and hash every image, and mix what is left.

    Raises:
        UsageError: nothing is left.
    """
    kept: list[Verdict] = []
    dropped: list[tuple[str, str, str]] = []
    size = 0
    look = partial(judge, options.maps, ImageFilter(options.min_size_px, options.min_sharpness))
    for number, verdict in enumerate(map_ordered(look, sorted(images.items()), workers), start=1):
        if verdict.reason:
            dropped.append((verdict.key, verdict.reason, verdict.detail))
        else:
            kept.append(verdict)
        size += verdict.size
        progress("looking at images", number, len(images), size)
    order = (kept[permuted(n, len(kept), options.seed, "pack")] for n in range(len(kept)))
    plan = Plan(options, [(verdict.key, verdict.digests) for verdict in order], dropped)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in plan.drop_counts.items())
        raise UsageError(f"{' '.join(options.folders)}: no image is left to pack: {reasons}")
    return plan


def check_same(plan: Plan, options: PackOptions, images: Mapping[str, Path], where: Path) -> None:
    """Refuse to go on with the plan of something else.

    Raises:
        UsageError: options or images differ; names them.
    """
    old, new = asdict(plan.options), asdict(options)
    differing = [f"{name} was {old[name]!r}, is {new[name]!r}" for name in new if old[name] != new[name]]
    planned = {key for key, _ in plan.samples} | {key for key, _, _ in plan.dropped}
    for what, keys in (("new", images.keys() - planned), ("gone", planned - images.keys())):
        if keys:
            differing.append(f"{len(keys)} images are {what}, the first is {min(keys)!r}")
    if differing:
        raise UsageError(
            f"{where} was begun as another set: {'; '.join(differing)}. Give another --output, or delete this folder"
        )
