"""What every registered guidance type promises: shape, range, determinism, and that it depends on what it says."""

from __future__ import annotations

import pytest
import torch

from data_pipelines.datamodules import SceneDataModule
from data_pipelines.samples import collate
from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.guidance.extract import extract_guidance
from megasr.guidance.registry import get_guidance, list_guidance
from megasr.images import resize

SCALE_FACTOR = 4
SIZE_PX = 64
SCENE_MAPS = ("depth", "edge", "normal", "segmentation")
CONTROLS = ("noise", *(f"oracle_{name}" for name in ("canny", "superpixel", *SCENE_MAPS)))
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


def extract(batch: SRBatch, name: str) -> torch.Tensor:
    return extract_guidance(batch, [get_guidance(name)], SCALE_FACTOR)[name]


def mirrored(image: torch.Tensor) -> torch.Tensor:
    """Another image of the same statistics."""
    return image.flip(-1).roll(5, -2)


def test_the_controls_are_registered() -> None:
    assert set(CONTROLS) <= set(NAMES)
    readers = [name for name in NAMES if get_guidance(name).source == "lq" and name not in CONTROLS]
    assert readers
    assert all(f"oracle_{name}" in NAMES for name in readers)


@pytest.mark.parametrize("name", NAMES)
def test_map_has_the_declared_shape_and_range(name: str, batch: SRBatch) -> None:
    guidance = get_guidance(name)
    image = extract(batch, name)
    assert guidance.role in ("edge", "region")
    assert guidance.description
    assert image.shape == (3, guidance.channels, SIZE_PX, SIZE_PX)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert all(sample.std() > 0.01 for sample in image), "a constant map guides nothing"


@pytest.mark.parametrize("name", NAMES)
def test_map_is_the_same_every_time_alone_and_in_a_batch(name: str, batch: SRBatch) -> None:
    whole = extract(batch, name)
    assert torch.equal(whole, extract(batch, name))
    for index in range(3):
        one: SRBatch = {"keys": batch["keys"][index : index + 1]}
        one |= {image: batch[image][index : index + 1] for image in ("hq", "lq")}
        one["maps"] = {known: value[index : index + 1] for known, value in batch["maps"].items()}
        assert torch.equal(extract(one, name), whole[index : index + 1])


@pytest.mark.parametrize("name", NAMES)
def test_map_depends_on_its_source_and_on_nothing_else(name: str, batch: SRBatch) -> None:
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
def test_positive_control_is_its_type_on_hq(name: str, batch: SRBatch) -> None:
    oracle, guidance = get_guidance(name), get_guidance(name.removeprefix("oracle_"))
    assert (oracle.role, oracle.channels) == (guidance.role, guidance.channels)
    assert guidance.extractor is not None
    assert torch.equal(extract(batch, name), guidance.extractor(batch["hq"], batch["keys"]))
    without: SRBatch = {"keys": batch["keys"], "lq": batch["lq"]}
    with pytest.raises(UsageError, match=f"{name}.*hq"):
        extract(without, name)


@pytest.mark.parametrize("name", [name for name in NAMES if get_guidance(name).source == "batch"])
def test_exact_maps_come_with_the_data_or_not_at_all(name: str, batch: SRBatch) -> None:
    assert torch.equal(extract(batch, name), batch["maps"][name])
    without: SRBatch = {image: batch[image] for image in ("keys", "hq", "lq")}  # type: ignore[misc, assignment]
    with pytest.raises(UsageError, match=f"{name}.*SceneDataModule"):
        extract(without, name)
