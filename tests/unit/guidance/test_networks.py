"""Which networks make the maps: sources, sharing, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extract import ExtractorConfig, Networks, extract_guidance, identify_source, load_network
from megasr.guidance.extractors import Views
from megasr.guidance.registry import get_guidance, resolve_guidance
from megasr.guidance.tiny import TinyMaps, build_tiny, load_tiny
from tests.helpers.extractor_checkpoints import write_depth, write_hed

CPU = torch.device("cpu")
COLORS = [(1.0, 0.2, 0.0), (0.0, 0.6, 0.4), (0.0, 0.0, 1.0)]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small network with random weights."""
    folder = tmp_path / "small"
    build_tiny(("sky", "brick", "grass"), COLORS).export(folder)
    return folder


def batch() -> dict:
    return {"keys": ["a", "b"], "lq": torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))}


def test_maps_of_one_network_come_from_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    whole = TinyMaps.forward

    def counted(self: TinyMaps, views: Views, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        calls.append(names)
        return whole(self, views, names)

    monkeypatch.setattr(TinyMaps, "forward", counted)
    extract_guidance(batch(), resolve_guidance(["depth", "hed", "segmentation", "canny"]), 4)
    assert calls == [("depth", "hed", "segmentation")]


def test_maps_that_the_data_bring_load_nothing(tmp_path: Path) -> None:
    networks = Networks(ExtractorConfig({"depth": str(tmp_path / "nowhere")}))
    given = batch() | {"maps": {"depth": torch.full((2, 1, 32, 48), 0.5)}}
    assert extract_guidance(given, resolve_guidance(["depth"]), 4, networks)["depth"].mean() == 0.5
    with pytest.raises(MegaSRError, match="nowhere"):
        extract_guidance(batch(), resolve_guidance(["depth"]), 4, networks)


def test_every_field_has_an_effect(small: Path) -> None:
    types = resolve_guidance(["hed"])
    default = extract_guidance(batch(), types, 4)["hed"]
    other = extract_guidance(batch(), types, 4, Networks(ExtractorConfig({"hed": str(small)})))["hed"]
    half = extract_guidance(batch(), types, 4, Networks(ExtractorConfig(dtype="bfloat16")))["hed"]
    assert not torch.equal(default, other)
    assert half.dtype == torch.float32
    assert not torch.equal(default, half)
    assert (default - half).abs().max() < 0.05
    with pytest.raises(UsageError, match=r"extractors\.cache 'maps': maps are no longer cached; leave it out"):
        ExtractorConfig(cache="maps")


def test_a_positive_control_takes_its_types_network_unless_named(small: Path) -> None:
    oracle, depth = get_guidance("oracle_depth"), get_guidance("depth")
    assert ExtractorConfig().source_of(depth) == "tiny_lq"
    assert ExtractorConfig().source_of(oracle) == "tiny", "the one for clean images"
    config = ExtractorConfig({"depth": str(small)})
    assert config.source_of(depth) == config.source_of(oracle) == str(small)
    assert ExtractorConfig({"depth": str(small), "oracle_depth": "tiny"}).source_of(oracle) == "tiny"


def test_types_of_one_source_share_a_network(small: Path) -> None:
    networks = Networks(ExtractorConfig(dict.fromkeys(("hed", "depth"), str(small))))
    assert networks.get(get_guidance("hed"), CPU) is networks.get(get_guidance("depth"), CPU)
    assert networks.get(get_guidance("normal"), CPU) is not networks.get(get_guidance("depth"), CPU)


def test_depth_and_normals_share_a_full_size_network(tmp_path: Path) -> None:
    folder = str(write_depth(tmp_path / "depth"))
    networks = Networks(ExtractorConfig({"depth": folder, "normal": folder}))
    assert networks.get(get_guidance("normal"), CPU) is networks.get(get_guidance("depth"), CPU)


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ({"dept": "tiny"}, "unknown guidance type 'dept'; did you mean depth"),
        ({"canny": "tiny"}, "canny needs no network"),
        ({"oracle_edge": "tiny"}, "oracle_edge needs no network"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(sources: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ExtractorConfig(sources)


def test_a_source_that_would_do_nothing_is_refused() -> None:
    config = ExtractorConfig({"depth": "tiny"})
    config.check_used(resolve_guidance(["oracle_depth"]))
    with pytest.raises(UsageError, match=r"names depth, which adapter\.guidance does not use"):
        config.check_used(resolve_guidance(["hed"]))


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sketch has no extractor 'tiny': lineart-sketch"):
        load_network(get_guidance("sketch"), "tiny")
    with pytest.raises(MegaSRError, match=r"sketch.*ControlNetHED\.pth"):
        load_network(get_guidance("sketch"), str(write_hed(tmp_path)))


def test_the_identity_of_a_source_follows_its_files(small: Path) -> None:
    before = identify_source(str(small))
    assert before == identify_source(str(small)) != identify_source("tiny")
    build_tiny(("sky", "brick", "grass"), COLORS, pyramid_width=32).export(small)
    assert identify_source(str(small)) != before


# The small network itself


def test_what_is_exported_is_loaded(small: Path) -> None:
    image = torch.rand(1, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    first, second = (load_tiny(str(small)) for _ in range(2))
    maps = first(Views(image), first.gives)
    assert all(torch.equal(value, second(Views(image), second.gives)[name]) for name, value in maps.items())
    assert not any(p.requires_grad for p in first.parameters())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_and_missing_files_are_one_clear_error(small: Path, name: str) -> None:
    path = small / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MegaSRError, match="small.* cannot be read"):
        load_tiny(str(small))
    path.unlink()
    with pytest.raises(MegaSRError, match=f"small lacks {name}"):
        load_tiny(str(small))


def test_segmentation_is_drawn_in_the_colours_of_the_classes(small: Path) -> None:
    network = load_tiny(str(small))
    classes = torch.tensor([[[0, 1], [2, 1]]])
    logits = torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float() * 9
    padded = torch.nn.functional.interpolate(logits, (16, 16), mode="nearest")
    colours = network.finish({"segmentation": padded}, ("segmentation",), (16, 16))["segmentation"]
    assert torch.equal(network.classes_of(colours)[:, ::8, ::8], classes)
    rounded = network.to(torch.bfloat16).finish({"segmentation": padded}, ("segmentation",), (16, 16))["segmentation"]
    assert torch.equal(rounded, colours), "half precision leaves the colours alone"
    with pytest.raises(UsageError, match="colours of none of the 3 classes"):
        network.classes_of(torch.full((1, 3, 4, 4), 0.5))
