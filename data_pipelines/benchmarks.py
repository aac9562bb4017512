"""Benchmark sets: their layout on disk, and a data module over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from data_pipelines.data_module import SRDataModule
from data_pipelines.folder import index_folder, read_or_drop, tags_or_drop
from data_pipelines.paired import PairedSource, list_problems
from data_pipelines.samples import Sample
from megasr.errors import UsageError, unknown_name
from megasr.images import center_crop, from_uint8, read_size

# Folders of (lq, hq): StableSR's zip has the first two, the others are what people rename them to.
LAYOUTS = (
    ("test_LR", "test_HR"), ("lq", "gt"), ("lq", "hq"), ("LQ", "GT"), ("LQ", "HQ"), ("LR", "HR"), ("LR", "GT"),
    ("lr", "hr"), ("lr", "gt"),
)  # fmt: skip
_STABLESR = "StableSR_testsets.zip of huggingface.co/datasets/Iceclear/StableSR-TestSets"
_SEESR = "the Google Drive or OneDrive folder that the README of github.com/cswry/SeeSR links"
_DREAMCLEAR = "the Google Drive file that the README of github.com/shallowdream204/DreamClear links"


@dataclass(frozen=True)
class Benchmark:
    """A named set of evaluation images.

    Attributes:
        name: in `--data` and in results.
        count: number of images.
        lq_px: height and width of every lq as distributed; None when they differ.
        has_hq: there is ground truth, scale_factor times as large as lq.
        protocol: the field's evaluation protocol for it.
        obtain: where to download it.
        folders: names of its folder there.
        crop_px: height and width of the centre of lq that is restored; None restores all of it.
        scale_factor: size of sr over size of lq.
        caveat: what else has this name.
        licence: of the images; none of these sets states one.
    """

    name: str
    count: int
    lq_px: int | None
    has_hq: bool
    protocol: str
    obtain: str
    folders: tuple[str, ...]
    crop_px: int | None = None
    scale_factor: int = 4
    caveat: str = ""
    licence: str = "unknown"

    @property
    def hq_px(self) -> int | None:
        """Height and width of every hq; None when they differ or there is none."""
        return self.lq_px * self.scale_factor if self.has_hq and self.lq_px else None

    def __str__(self) -> str:
        size = "any size" if self.lq_px is None else f"{self.lq_px}x{self.lq_px} px"
        with_hq = f" with hq of {self.hq_px}x{self.hq_px} px" if self.has_hq else ", no hq"
        caveat = f" ({self.caveat})" if self.caveat else ""
        return f"{self.name} is {self.count} lq of {size}{with_hq}, from {self.obtain}{caveat}"


_CROPS = "stablesr-crops-v1"
_REALSR_CAVEAT = (
    "centre crops of the x4 test pairs; the whole photographs go by the same name, as does DreamClear's 1024 px"
)
_DIV2K_CAVEAT = "crops degraded by StableSR's mild preset; DreamClear's DIV2K-Val is another set"
_VOSR = "huggingface.co/datasets/CSWRY/ScreenSR, or modelscope.cn/datasets/LULALULALU/ScreenSR"
_SCREENSR_CAVEAT = "VOSR's photographs of screens (2604.03225); 130 is the number of pictures in its overview"
_X8_CAVEAT = "the lq of the x4 set, restored to 1024 px as TUDSR does (2606.09608): there is no hq of that size"
_REALLR200 = ("RealLR200", "reallr200")
_REALLR200_CAVEAT = "SeeSR restores the whole images, TADSR their 128 px centres"
_ALL = (
    Benchmark("realsr", 100, 128, True, _CROPS, _STABLESR, ("RealSRVal_crop128",), caveat=_REALSR_CAVEAT),
    Benchmark("drealsr", 93, 128, True, _CROPS, _STABLESR, ("DrealSRVal_crop128",), caveat=_REALSR_CAVEAT),
    Benchmark("div2k-val", 3000, 128, True, _CROPS, _STABLESR, ("DIV2K_V2_val",), caveat=_DIV2K_CAVEAT),
    Benchmark("reallr200", 200, None, False, "whole-image-v1", _SEESR, _REALLR200, caveat=_REALLR200_CAVEAT),
    Benchmark("reallr200-crop128", 200, None, False, _CROPS, _SEESR, _REALLR200, 128, caveat=_REALLR200_CAVEAT),
    Benchmark("reallq250", 250, 256, False, "dreamclear-1024-v1", _DREAMCLEAR, ("RealLQ250", "reallq250")),
    Benchmark("screensr", 130, None, True, "whole-image-v2", _VOSR, ("ScreenSR",), caveat=_SCREENSR_CAVEAT),
    Benchmark("realsr-x8", 100, 128, False, "whole-image-v2", _STABLESR, ("RealSRVal_crop128",),
              scale_factor=8, caveat=_X8_CAVEAT),
    Benchmark("drealsr-x8", 93, 128, False, "whole-image-v2", _STABLESR, ("DrealSRVal_crop128",),
              scale_factor=8, caveat=_X8_CAVEAT),
)  # fmt: skip
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({benchmark.name: benchmark for benchmark in _ALL})


@dataclass(frozen=True)
class BenchmarkFiles:
    """The images of a set in a folder, checked; an evaluation set (see data_pipelines.samples.EvalSet).

    Tags are those beside lq: a description of hq would tell an adapter that uses text what to restore.

    Attributes:
        benchmark: which set.
        lq: key and file of every lq, in the order of the keys.
        pairs: lq and hq of a set that has hq, in the same order; None for the others.
        sizes: (height, width) of what is restored of every lq, in the same order.
    """

    benchmark: Benchmark
    lq: tuple[tuple[str, Path], ...]
    pairs: PairedSource | None
    sizes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.lq)

    def key(self, index: int) -> str:
        """Key of image `index`."""
        return self.lq[index][0]

    def read(self, index: int) -> Sample:
        """Image `index`; hq is empty where the set has none. Raises UnusableSampleError when a file is unreadable."""
        key, path = self.lq[index]
        if self.pairs is not None:
            return replace(self.pairs.read_images(index), tags=tags_or_drop(key, path))
        pixels, crop_px = read_or_drop(key, path), self.benchmark.crop_px
        lq = from_uint8(pixels if crop_px is None else center_crop(pixels, crop_px))
        return Sample(key, np.empty((0, 0, 3), np.uint8), tags_or_drop(key, path), lq=lq)

    def tags(self, index: int) -> str:
        """The tags of read(index), without its images. Raises UnusableSampleError when they cannot be read."""
        return tags_or_drop(*self.lq[index])


def get_benchmark(name: str) -> Benchmark:
    """The benchmark set of this name. Raises UsageError with the nearest names when there is none."""
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def check_layout(name: str, root: str | Path, allow_subset: bool = False) -> BenchmarkFiles:
    """Find the images of a benchmark set and check their number, names and sizes (from the headers).

    Args:
        name: one of BENCHMARKS.
        root: the folder of the set, the folder it lies in, or what StableSR's zip was unpacked to.
        allow_subset: accept fewer images than the set has.

    Raises:
        UsageError: an unknown name, no folder of a known layout, or images that are not the set; says what is there,
            what is expected and where to download it.
        MegaSRError: a file is not an image.
    """
    benchmark = get_benchmark(name)
    lq_folder, hq_folder = _find_folders(benchmark, Path(root))
    pairs = None
    try:
        if hq_folder is not None:
            pairs = PairedSource(hq_folder, benchmark.scale_factor, lq_folder)
            lq = {key: path for key, path, _ in pairs.pairs}
        else:
            lq = dict(sorted(index_folder(lq_folder).items()))
    except UsageError as error:
        raise UsageError(f"{error}\n{benchmark}") from error
    if len(lq) > benchmark.count or (len(lq) < benchmark.count and not allow_subset):
        hint = "; data.allow_subset takes them, and every result says so" if len(lq) < benchmark.count else ""
        raise UsageError(f"{lq_folder}: {len(lq)} images, the set has {benchmark.count}{hint}\n{benchmark}")
    return BenchmarkFiles(benchmark, tuple(lq.items()), pairs, _checked_sizes(benchmark, lq))


def _find_folders(benchmark: Benchmark, root: Path) -> tuple[Path, Path | None]:
    """(folder of lq, folder of hq or None) of the one known layout that is there."""
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; {benchmark}")
    places = [root, *(parent / name for parent in (root, root / "StableSR_testsets") for name in benchmark.folders)]
    for place in places:
        # not is_dir(): on a case-insensitive file system one folder has two of the names
        inside = {path.name for path in place.iterdir() if path.is_dir()} if place.is_dir() else set()
        layouts = [layout if benchmark.has_hq else layout[:1] for layout in LAYOUTS]
        present = [layout for layout in dict.fromkeys(layouts) if set(layout) <= inside]
        if len(present) > 1:
            names = " or in ".join("+".join(layout) for layout in present)
            raise UsageError(f"{place}: is {benchmark.name} in {names}? Move the other folders away")
        if present:
            lq, *hq = (place / folder for folder in present[0])
            return lq, hq[0] if hq else None
    if not benchmark.has_hq:
        return next((place for place in places[1:] if place.is_dir()), root), None
    there = ", ".join(sorted(path.name for path in root.iterdir())[:20]) or "nothing"
    expected = ", ".join("+".join(layout) for layout in LAYOUTS)
    raise UsageError(f"{root}: holds {there}; expected the folders {expected}; {benchmark}")


def _checked_sizes(benchmark: Benchmark, lq: Mapping[str, Path]) -> tuple[tuple[int, int], ...]:
    """Sizes of what is restored of every lq; hq has been compared with lq already."""
    sizes = [read_size(path) for path in lq.values()]
    least, exact = benchmark.crop_px or 1, benchmark.lq_px
    problems = [
        f"{path}: {width}x{height} px"
        for path, (height, width) in zip(lq.values(), sizes, strict=True)
        if min(height, width) < least or (exact is not None and (height, width) != (exact, exact))
    ]
    if problems:
        expected = f"{exact}x{exact} px" if exact is not None else f"at least {least}x{least} px"
        raise UsageError(f"{len(problems)} lq are not of {expected}:{list_problems(problems)}\n{benchmark}")
    crop = benchmark.crop_px
    return tuple(sizes) if crop is None else ((crop, crop),) * len(sizes)


class BenchmarkDataModule(SRDataModule):
    """One of the field's benchmark sets (see data_pipelines.benchmarks), for `megasr test` and `validate`.

    Args:
        benchmark: name of the set.
        root: the folder of the set, the folder it lies in, or what StableSR's zip was unpacked to.
        allow_subset: take fewer images than the set has; results then say how many.
        batch_size: images per batch; a set of images of several sizes needs 1.

    Raises:
        UsageError: the folder does not hold the set, or the images of a batch would differ in size.
        MegaSRError: a file is not an image.
    """

    def __init__(
        self, benchmark: str, root: str, allow_subset: bool = False, batch_size: int = 1, num_workers: int = 0
    ) -> None:
        files = check_layout(benchmark, root, allow_subset)
        if batch_size > 1 and len(set(files.sizes)) > 1:
            raise UsageError(f"the images of {benchmark} differ in size: set data.batch_size to 1, not {batch_size}")
        super().__init__(
            evaluation=files, scale_factor=files.benchmark.scale_factor, batch_size=batch_size,
            train_samples=batch_size, eval_samples=len(files), num_workers=num_workers,
        )  # fmt: skip
        self.has_hq = files.pairs is not None
        self.benchmark = benchmark
        self.benchmark_images = (len(files), files.benchmark.count)

    def setup(self, stage: str) -> None:
        """Refuse to train, and to take the validation loss of images without hq. Raises UsageError."""
        if stage == "fit":
            raise UsageError(f"{self.benchmark} is a benchmark: it is not for training, nor for choosing checkpoints")
        if stage == "validate" and not self.has_hq:
            raise UsageError(f"{self.benchmark} has no hq, which the validation loss needs: use `megasr test`")

    def eval_sample(self, index: int) -> Sample:
        assert self.eval_source is not None
        return self.eval_source.read(index)
