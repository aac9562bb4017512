"""What every registered guidance type promises: shape, range, determinism, and that it depends on what it says."""

from __future__ import annotations

import runpy
from collections.abc import Callable

import pytest
import torch

from ablations.registry import STUDIES
from data_pipelines.datamodules import SceneDataModule
from data_pipelines.degradations.presets import DEGRADATIONS
from data_pipelines.samples import collate
from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.evaluation.protocol import METRICS, PROTOCOLS
from megasr.guidance.extract import ExtractorConfig, Networks, extract_guidance
from megasr.guidance.extractors import Views
from megasr.guidance.registry import GUIDANCE, GuidanceType, get_guidance, list_guidance
from megasr.images import resize
from tests.helpers.extractor_checkpoints import write_mlsd, write_pidinet, write_sketch
from tests.helpers.sources import ROOT

Extract = Callable[[SRBatch, str], torch.Tensor]
SCALE_FACTOR = 4
SIZE_PX = 64
POOL = (
    "hed",
    "pidinet",
    "canny",
    "sketch",
    "lsd",
    "mlsd",
    "depth",
    "normal",
    "segmentation",
    "superpixel",
    "saliency",
    "noise",
)
CONTROLS = ("noise", "oracle_edge", *(f"oracle_{name}" for name in POOL if name != "noise"))
NAMES = list_guidance()


@pytest.fixture(scope="module")
def batch() -> SRBatch:
    """Three scenes with lq."""
    data = SceneDataModule(crop_size_px=SIZE_PX)
    samples = (data.eval_sample(index) for index in range(20))
    made = collate(
        [sample for sample in samples if sample.tags.count(",") > 2][:3]
    )  # not a bare surface, without edges
    made["lq"] = resize(made["hq"], SIZE_PX // SCALE_FACTOR, SIZE_PX // SCALE_FACTOR)
    return made


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """The shipped ones, and random weights where none are shipped."""
    writers = {"sketch": write_sketch, "pidinet": write_pidinet, "mlsd": write_mlsd}
    sources = {name: str(write(tmp_path_factory.mktemp(name))) for name, write in writers.items()}
    return Networks(ExtractorConfig(sources))


@pytest.fixture
def extract(networks: Networks) -> Extract:
    """The map of a type; without what the data bring, unless the type is that."""

    def of(batch: SRBatch, name: str) -> torch.Tensor:
        guidance = get_guidance(name)
        if guidance.source != "batch":
            batch = {key: value for key, value in batch.items() if key != "maps"}  # type: ignore[assignment]
        return extract_guidance(batch, [guidance], SCALE_FACTOR, networks)[name]

    return of


def same(guidance: GuidanceType, first: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal; of a network but for rounding, which depends on the size of the batch and may turn a pixel's class."""
    if guidance.load is None:
        return torch.equal(first, other)
    return first.shape == other.shape and bool(((first - other).abs() > 1e-4).float().mean() < 1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if get_guidance(name).source != "batch"])
@pytest.mark.parametrize("size", [(17, 75), (40, 53)])
def test_any_size_will_do(name: str, size: tuple[int, int], networks: Networks) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    made = extract_guidance({"keys": ["a", "b"], "lq": image, "hq": image}, [get_guidance(name)], 1, networks)[name]
    assert made.shape == (2, get_guidance(name).channels, *size)


def mirrored(image: torch.Tensor) -> torch.Tensor:
    """Another image of the same statistics."""
    return image.flip(-1).roll(5, -2)


def test_the_pool_and_its_controls_are_registered() -> None:
    assert {*POOL, *CONTROLS} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_map_has_the_declared_shape_and_range(name: str, batch: SRBatch, extract: Extract) -> None:
    guidance = get_guidance(name)
    image = extract(batch, name)
    assert guidance.role in ("edge", "region")
    assert guidance.description
    assert guidance.needs
    assert image.shape == (3, guidance.channels, SIZE_PX, SIZE_PX)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert all(sample.std() > 0.01 for sample in image), "a constant map guides nothing"


@pytest.mark.parametrize("name", NAMES)
def test_map_has_a_picture(name: str, batch: SRBatch, extract: Extract) -> None:
    picture = get_guidance(name).render(extract(batch, name)[0])
    assert picture.shape == (3, SIZE_PX, SIZE_PX)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert picture.std() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_map_is_the_same_every_time_alone_and_in_a_batch(name: str, batch: SRBatch, extract: Extract) -> None:
    whole, guidance = extract(batch, name), get_guidance(name)
    assert torch.equal(whole, extract(batch, name))
    for index in range(3):
        one: SRBatch = {"keys": batch["keys"][index : index + 1]}
        one |= {image: batch[image][index : index + 1] for image in ("hq", "lq")}
        one["maps"] = {known: value[index : index + 1] for known, value in batch["maps"].items()}
        assert same(guidance, extract(one, name), whole[index : index + 1])


@pytest.mark.parametrize("name", NAMES)
def test_map_depends_on_its_source_and_on_nothing_else(name: str, batch: SRBatch, extract: Extract) -> None:
    """`noise` depends on the key alone; no other type knows the key."""
    whole = extract(batch, name)
    source = "keys" if name == "noise" else get_guidance(name).source
    changes: dict[str, SRBatch] = {
        "lq": {**batch, "lq": mirrored(batch["lq"])},
        "hq": {**batch, "hq": mirrored(batch["hq"])},
        "keys": {**batch, "keys": [f"other-{key}" for key in batch["keys"]]},
        "batch": {**batch, "maps": {known: 1 - value for known, value in batch["maps"].items()}},
    }
    for changed, other in changes.items():
        equal = torch.equal(extract(other, name), whole)
        assert equal == (changed != source), f"{name} reads {source}, but changing {changed} gives equal maps: {equal}"


@pytest.mark.parametrize("name", [name for name in NAMES if get_guidance(name).source == "hq"])
def test_positive_control_is_its_type_on_hq(name: str, batch: SRBatch, extract: Extract, networks: Networks) -> None:
    oracle, guidance = get_guidance(name), get_guidance(name.removeprefix("oracle_"))
    assert (oracle.role, oracle.channels) == (guidance.role, guidance.channels)
    if guidance.formula is not None:
        expected = guidance.formula(batch["hq"], batch["keys"])
    else:
        network = networks.get(oracle, torch.device("cpu"))
        with torch.no_grad():
            expected = network(Views(batch["hq"]), (guidance.name,))[guidance.name]
    assert torch.equal(extract(batch, name), expected)
    without: SRBatch = {"keys": batch["keys"], "lq": batch["lq"]}
    with pytest.raises(UsageError, match=f"{name}.*hq"):
        extract(without, name)


@pytest.mark.parametrize("name", [name for name in NAMES if get_guidance(name).source == "batch"])
def test_exact_maps_come_with_the_data_or_not_at_all(name: str, batch: SRBatch, extract: Extract) -> None:
    assert torch.equal(extract(batch, name), batch["maps"][name])
    without: SRBatch = {image: batch[image] for image in ("keys", "hq", "lq")}  # type: ignore[misc, assignment]
    with pytest.raises(UsageError, match=f"{name}.*SceneDataModule"):
        extract(without, name)


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types that the example of the documents adds."""
    for registry in (GUIDANCE, METRICS, PROTOCOLS, DEGRADATIONS, STUDIES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    runpy.run_path(str(ROOT / "examples" / "own_parts" / "own_parts.py"))
    return sorted(set(GUIDANCE) - set(NAMES))


def test_a_type_that_is_added_as_documented_keeps_what_all_keep(
    documented: list[str], batch: SRBatch, extract: Extract, networks: Networks
) -> None:
    assert documented == ["gradient", "oracle_gradient"]
    for name in documented:
        test_map_has_the_declared_shape_and_range(name, batch, extract)
        test_map_has_a_picture(name, batch, extract)
        test_map_is_the_same_every_time_alone_and_in_a_batch(name, batch, extract)
        test_map_depends_on_its_source_and_on_nothing_else(name, batch, extract)
        test_any_size_will_do(name, (17, 75), networks)
    test_positive_control_is_its_type_on_hq("oracle_gradient", batch, extract, networks)
