"""Weights of metrics: where they are looked for, what is said of those that are missing, and that nothing leaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.hub

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation import metrics
from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.metrics import (
    FILES,
    altered_files,
    choose_metrics,
    describe_missing,
    find_weight,
    found_weights,
    source_of,
    weight_hashes,
)
from megasr.evaluation.protocol import PROTOCOLS, WEIGHT_FREE_V1

NIQE, LPIPS, ALEXNET = "niqe_modelparameters.mat", "LPIPS_v0.1_alex-df73285e.pth", "alexnet-owt-7be5be79.pth"
VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"


@pytest.fixture
def hub(tmp_path: Path):
    """An empty cache of torch."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


def test_the_folder_goes_before_the_cache(hub: Path, tmp_path: Path) -> None:
    assert find_weight(NIQE) is None
    (hub / "pyiqa").mkdir(parents=True)
    (hub / "pyiqa" / NIQE).write_bytes(b"cache")
    assert find_weight(NIQE) == find_weight(NIQE, tmp_path / "hub" / "pyiqa") == hub / "pyiqa" / NIQE
    deep = tmp_path / "mine" / "deep"
    deep.mkdir(parents=True)
    assert find_weight(NIQE, tmp_path / "mine") == hub / "pyiqa" / NIQE
    (deep / NIQE).write_bytes(b"mine")
    assert find_weight(NIQE, tmp_path / "mine") == deep / NIQE
    (tmp_path / "mine" / "a").mkdir()
    (tmp_path / "mine" / "a" / NIQE).write_bytes(b"another")
    assert find_weight(NIQE, tmp_path / "mine") == tmp_path / "mine" / "a" / NIQE  # the first by name
    (hub / "pyiqa" / LPIPS).mkdir()
    assert find_weight(LPIPS) is None
    with pytest.raises(UsageError, match="nowhere: no such folder"):  # also where no weights are needed
        Evaluator(WEIGHT_FREE_V1, metrics=["psnr_y"], weights_dir=tmp_path / "nowhere")


def test_what_is_missing_is_named_with_its_source(hub: Path, tmp_path: Path) -> None:
    text = describe_missing((ALEXNET, LPIPS), tmp_path)
    assert text.startswith(f"lacks {ALEXNET} (https://download.pytorch.org/models/{ALEXNET}), {LPIPS} (https://")
    assert str(tmp_path) not in text  # it becomes part of results
    assert describe_missing((VIT,)) == f"lacks {VIT} (`hf download {VIT}`)"
    assert describe_missing(()) == ""
    assert all(source_of(name).startswith(("https://", "`hf download ")) for name in FILES)


def test_only_weights_are_an_error_and_only_those_are_named(hub: Path, tmp_path: Path) -> None:
    protocol = PROTOCOLS["whole-image-v1"]
    options = {"weights_dir": tmp_path, "missing": "error"}
    with pytest.raises(MegaSRError, match="weights of metrics are missing: niqe lacks niqe_"):
        choose_metrics(protocol, None, has_hq=False, **options)
    formulas = PROTOCOLS["weight-free-v1"]
    assert choose_metrics(formulas, None, has_hq=False, **options) == (
        [],
        dict.fromkeys(formulas.metric_names, "needs hq"),
    )
    with pytest.raises(UsageError, match="metrics psnr, psnr: a name occurs twice"):
        choose_metrics(protocol, ["psnr", "psnr"], has_hq=True, **options)


def test_a_repository_is_found_in_its_own_cache(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "0123456789abcdef0123"
    snapshot.mkdir()
    monkeypatch.setattr(metrics, "find_local", {VIT: snapshot}.get)
    (tmp_path / "mine" / VIT).mkdir(parents=True)  # timm would not read it there
    assert find_weight(VIT) == find_weight(VIT, tmp_path / "mine") == snapshot
    assert weight_hashes((VIT,)) == {VIT: "0123456789abcdef"}  # its revision
    with found_weights((VIT,)):
        assert list(Path(torch.hub.get_dir()).iterdir()) == []  # timm looks in the same cache


def test_a_folder_may_be_given_from_here(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    for name in (NIQE, LPIPS):
        (tmp_path / "mine" / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    with found_weights((NIQE, LPIPS), Path("mine")):
        assert [(Path(torch.hub.get_dir()) / "pyiqa" / name).read_text() for name in (NIQE, LPIPS)] == [NIQE, LPIPS]


def test_inside_the_libraries_find_the_files_and_outside_all_is_as_before(hub: Path, tmp_path: Path) -> None:
    from pyiqa.utils import download_util

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / NIQE).write_bytes(b"niqe")
    (mine / ALEXNET).write_bytes(b"alexnet")
    before = download_util.DEFAULT_CACHE_DIR
    with pytest.raises(ZeroDivisionError), found_weights((NIQE, ALEXNET), mine):
        inside = Path(torch.hub.get_dir())
        assert Path(download_util.load_file_from_url(source_of(NIQE))).read_bytes() == b"niqe"
        assert (inside / "checkpoints" / ALEXNET).read_bytes() == b"alexnet"
        assert sorted(path.name for path in inside.rglob("*.*")) == sorted([NIQE, ALEXNET])
        raise ZeroDivisionError
    assert (torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR) == (str(hub), before)
    assert not inside.exists()
    assert (mine / NIQE).read_bytes() == b"niqe"


def test_a_file_that_is_unknown_here_is_not_told() -> None:
    assert altered_files({"of-another-version.pth": "0" * 16}) == []


def test_files_that_are_not_the_published_ones_are_told(hub: Path, tmp_path: Path) -> None:
    for name in (NIQE, LPIPS, "RN50.pt"):
        (tmp_path / name).write_bytes(b"x")
    hashes = weight_hashes((NIQE, LPIPS, "RN50.pt", ALEXNET), tmp_path)
    assert hashes == dict.fromkeys((NIQE, LPIPS, "RN50.pt"), "2d711642b726b044")
    assert altered_files(hashes) == [LPIPS, "RN50.pt"]  # the name of the NIQE file tells no hash
    assert altered_files({LPIPS: "df73285e0123", "RN50.pt": "afeb0e10f9e5a86d"}) == []
    assert altered_files({LPIPS: "df73285f0123", "RN50.pt": "afeb0e11f9e5a86d"}) == [LPIPS, "RN50.pt"]
