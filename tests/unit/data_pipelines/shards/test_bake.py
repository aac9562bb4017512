"""Baked variants: the same as on-line, extended without touching what is there, mixed, refused when they do not fit."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.samples import Sample, UnusableSampleError
from data_pipelines.shards.bake import bake
from data_pipelines.shards.baked import BakeOptions, cut_variant
from data_pipelines.shards.verify import verify
from megasr.commands.shards import load_latents, load_vision
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extract import ExtractorConfig, Networks, extract_guidance
from megasr.guidance.registry import resolve_guidance
from megasr.images import upsample_lq
from megasr.prior import load_prior
from tests.helpers.shard_sets import (
    SIZES,
    encoded,
    image_names,
    make_shards,
    photo_files,
    pixels,
    shard_module,
    train_and_eval,
)
from tests.helpers.towers import random_tower


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return train_and_eval(tmp_path)


OPTIONS = BakeOptions("realesrgan_strong", 4, 32, maps=("canny",), seed=4)


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


def test_one_more_variant_leaves_the_others_alone_and_a_lost_one_comes_back(shards: Path) -> None:
    folder = shards / "baked" / "strong"
    bake(shards, "strong", OPTIONS, 2)
    two = content(folder)
    assert len(two) == 2 * len(SIZES)
    manifest = bake(shards, "strong", OPTIONS, 3)
    three = content(folder)
    assert {name: three[name] for name in two} == two, "bytes and times"
    assert manifest.samples == 3 * sum(SIZES)
    lost = sorted(three)[4]
    (folder / lost).write_bytes(three[lost][0][:1000])  # as if killed without whole files
    bake(shards, "strong", OPTIONS, 3)
    assert {name: found[0] for name, found in content(folder).items()} == {n: f[0] for n, f in three.items()}
    with pytest.raises(UsageError, match="holds 3 variants already, 2 would lose some"):
        bake(shards, "strong", OPTIONS, 2)
    with pytest.raises(UsageError, match="seed was 4, is 5"):
        bake(shards, "strong", BakeOptions("realesrgan_strong", 4, 32, maps=("canny",), seed=5), 3)


def test_a_baked_variant_is_what_on_line_training_would_have_made(shards: Path) -> None:
    bake(shards, "strong", OPTIONS, 2)
    data = shard_module(shards, baked="strong", degradation="realesrgan_strong", train_samples=24)
    batches = list(data.train_dataloader())
    assert Counter(image_names(batches)) == {f"photo {n:02d}/v{v}": 1 for n in range(12) for v in range(2)}, (
        "all in 2 epochs"
    )
    strong = get_degradation("realesrgan_strong", 4)
    for batch in batches[:3]:
        for i, key in enumerate(batch["keys"]):
            name, variant = key.split("/")[0], int(key.split("/")[1][1:])
            (params,) = strong.sample_params(4, [name], variant)
            hq = (batch["hq"][i].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
            assert batch["degradation"][i] == params
            assert batch["tags"][i] == f"tag {int(name.split()[1])}"
            assert torch.equal(strong.apply_image(hq, params), batch["lq"][i])
        maps = extract_guidance({"keys": batch["keys"], "lq": batch["lq"]}, resolve_guidance(["canny"]), 4)
        assert (maps["canny"] - batch["maps"]["canny"]).abs().max() <= 0.5 / 255 + 1e-6
    crops = {
        (key.split("/")[1], batch["hq"][i].numpy().tobytes())
        for batch in batches
        for i, key in enumerate(batch["keys"])
    }
    assert len({crop for _, crop in crops}) == 24, "every variant has a crop of its own"


def test_baked_and_on_line_draws_mix_in_the_share_that_was_asked(shards: Path) -> None:
    bake(shards, "mild", BakeOptions("bicubic", 4, 32), 1)
    data = shard_module(shards, baked="mild", baked_share=0.25, train_samples=240)
    baked = [key.count("/") == 2 for batch in data.train_dataloader() for key in batch["keys"]]
    assert 0.16 < np.mean(baked) < 0.34
    assert baked != [
        key.count("/") == 2
        for batch in shard_module(shards, baked="mild", baked_share=0.25, train_samples=240, seed=1).train_dataloader()
        for key in batch["keys"]
    ]
    for changes, says in (
        ({"crop_size_px": 40}, "made with crop_size_px 32, data.crop_size_px is 40"),
        ({"degradation": "first_order"}, "degradation 'bicubic', data.degradation is 'first_order'"),
        ({"usm_target": True}, "usm_target False, data.usm_target is True"),
        ({"scale_factor": 2}, "scale_factor 4, data.scale_factor is 2"),
        ({"backend": "device", "baked_share": 0.5}, "needs data.backend cpu"),
        ({"baked_share": 1.5}, r"baked_share must be in \[0, 1\], got 1.5"),
        ({"baked": "../mild"}, "not the name of a baked set"),
    ):
        with pytest.raises(UsageError, match=says):
            shard_module(shards, **{"baked": "mild", **changes})


def test_baked_sets_are_found_through_a_pipe(shards: Path) -> None:
    bake(shards, "mild", BakeOptions("bicubic", 4, 32), 1)
    here, piped = (
        next(iter(shard_module(shards, baked="mild", **changes).train_dataloader()))
        for changes in ({}, {"train_url": f"pipe:cat {shards}/{{name}}", "cache_dir": str(shards / "cache")})
    )
    assert here["keys"] == piped["keys"]
    assert torch.equal(here["lq"], piped["lq"])
    assert torch.equal(here["hq"], piped["hq"])


def test_baked_sets_of_other_originals_are_refused(shards: Path) -> None:
    bake(shards, "mild", BakeOptions("bicubic", 4, 32), 1)
    make_shards(shards.parent / "other", SIZES, lambda n: photo_files(n + 50))
    shutil.copytree(shards / "baked", shards.parent / "other" / "baked")
    with pytest.raises(MegaSRError, match="baked from other originals"):
        shard_module(shards.parent / "other", baked="mild")
    with pytest.raises(UsageError, match="the original shards are others"):
        bake(shards.parent / "other", "mild", BakeOptions("bicubic", 4, 32), 1)


def test_an_unusable_original_is_baked_as_such_and_counted_when_drawn(tmp_path: Path) -> None:
    def files(number: int) -> tuple[str, dict[str, bytes]]:
        key, content = photo_files(number)
        image = {1: encoded(pixels(1, 20, 20)), 2: b"no image"}.get(number, content["png"])
        return key, {**content, "png": image}

    make_shards(tmp_path / "shards", SIZES, files)
    make_shards(tmp_path / "eval", [1], photo_files)
    bake(tmp_path / "shards", "mild", BakeOptions("bicubic", 4, 32), 1)
    for settings in ({"baked": "mild"}, {}):
        data = shard_module(tmp_path / "shards", max_damaged=0.1, **settings)
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
        assert sum(len(batch["keys"]) for batch in batches) == 12
        assert list(data.error_budget.damaged) == ["photo 02"]
        assert data.error_budget.filtered == {"smaller than 32 px": 1}
        assert "1 damaged images (unreadable image 1), 1 draws of filtered images" in data.error_budget.summary()


def test_a_set_says_how_it_was_made_and_leaves_no_parts(shards: Path) -> None:
    options = BakeOptions("realesrgan_strong", 4, 32, usm_target=True, maps=("canny", "noise"), seed=7)
    (shards / "baked" / "set").mkdir(parents=True)
    (shards / "baked" / "set" / "shard-000000-v000.tar.77.part").write_bytes(b"left by a kill")
    told: list[tuple] = []
    manifest = bake(shards, "set", options, 2, progress=lambda *what: told.append(what))
    assert manifest.command == (
        f"megasr shards bake {shards} --name set --variants 2 --degradation realesrgan_strong --scale-factor 4 "
        "--crop-size 32 --seed 7 --usm-target --maps canny noise"
    )
    assert manifest.licence == "none"
    assert manifest.fields == dict.fromkeys(["lq.png", "map.canny.png", "map.noise.png", "params.json"], 24)
    assert told[-1] == ("baking", 24, 24, sum(shard.bytes for shard in manifest.shards))
    assert not list((shards / "baked").rglob("*.part"))
    with tarfile.open(shards / "baked" / "set" / "shard-000000-v000.tar") as tar:
        assert {(member.uname, member.gname, member.mtime) for member in tar} == {("", "", 0)}


def test_every_seed_and_variant_has_its_own_crop_with_tags_and_without_maps_of_hq() -> None:
    sample = Sample("a", pixels(0, 60, 72), "dog", {"depth": torch.zeros(1, 60, 72)})
    crops = [
        cut_variant(sample, BakeOptions("bicubic", 4, 32, seed=seed), variant)
        for seed, variant in ((0, 0), (1, 0), (0, 1))
    ]
    assert len({crop.hq.tobytes() for crop in crops}) == 3
    assert [crop.key for crop in crops] == ["a/v0", "a/v0", "a/v1"]
    assert all((crop.tags, crop.maps) == ("dog", {}) for crop in crops)


def test_maps_are_made_of_the_lq_that_is_stored(shards: Path) -> None:
    bake(shards, "mild", BakeOptions("bicubic", 4, 32, maps=("superpixel",)), 1)
    for batch in shard_module(shards, baked="mild").train_dataloader():
        stored = {"keys": batch["keys"], "lq": batch["lq"]}
        expected = extract_guidance(stored, resolve_guidance(["superpixel"]), 4)["superpixel"]
        assert (expected - batch["maps"]["superpixel"]).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text.replace("megasr-baked-1", "megasr-baked-2"), "format is 'megasr-baked-2'"),
        (lambda text: text[:40], "not the description of a baked set .* bake it again"),
        (lambda text: text.replace('"seed"', '"sed"'), "not the description of a baked set"),
    ],
)
def test_a_description_that_is_none_is_refused(shards: Path, damage: Callable[[str], str], says: str) -> None:
    bake(shards, "mild", BakeOptions("bicubic", 4, 32), 1)
    path = shards / "baked" / "mild" / "baked.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(MegaSRError, match=says):
        shard_module(shards, baked="mild")


def test_a_set_that_lost_a_shard_is_refused_and_a_broken_variant_costs_one_sample(shards: Path) -> None:
    manifest = bake(shards, "mild", BakeOptions("bicubic", 4, 32), 2)
    source = shard_module(shards, baked="mild").baked
    assert source is not None
    key, files = source.baked.files(0)
    for broken in (b"{", None):
        lost = {**files, "params.json": broken} if broken else {"params.json": files["params.json"]}
        source.baked.files = lambda index, lost=lost: (key, lost)  # type: ignore[method-assign, misc]
        with pytest.raises(UnusableSampleError, match=f"{key}: damaged variant"):
            source.read(0, 0)
    path = shards / "baked" / "mild" / "manifest.json"
    path.write_text(replace(manifest, shards=manifest.shards[:-1], fields={}).to_json())
    with pytest.raises(MegaSRError, match="holds 21 samples, no multiple of 12 originals"):
        shard_module(shards, baked="mild")


def test_killed_in_the_middle_it_goes_on(shards: Path, tmp_path: Path) -> None:
    whole = train_and_eval(tmp_path / "whole")
    bake(whole, "strong", OPTIONS, 2)
    process = multiprocessing.get_context("fork").Process(target=bake, args=(shards, "strong", OPTIONS, 2))
    process.start()
    folder = shards / "baked" / "strong"
    while process.is_alive() and not list(folder.glob("*.tar")):
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert len(list(folder.glob("*.tar"))) < 2 * len(SIZES), "killed too late to show anything"
    bake(shards, "strong", OPTIONS, 2, workers=2)
    assert {name: found[0] for name, found in content(folder).items()} == {
        name: found[0] for name, found in content(whole / "baked" / "strong").items()
    }
    assert not list(folder.glob("*.part"))
    assert verify(folder) == []


def test_tokens_are_those_of_the_encoder(shards: Path, tmp_path: Path) -> None:
    tower = random_tower(tmp_path)
    load = partial(load_vision, tower.model, tower.weights)
    bake(shards, "tokens", BakeOptions("bicubic", 4, 32, tokens="tiny"), 1, load)
    batch = next(iter(shard_module(shards, baked="tokens").train_dataloader()))
    assert batch["image_tokens"].shape == (3, 16, 24)
    expected = load()(upsample_lq((batch["lq"] * 255).round() / 255, 4))
    torch.testing.assert_close(batch["image_tokens"], expected, atol=2e-3, rtol=2e-3)
    with pytest.raises(UsageError, match="tokens are 'tiny', and there is no encoder"):
        bake(shards, "other", BakeOptions("bicubic", 4, 32, tokens="tiny"), 1)


@pytest.mark.parametrize(
    ("options", "variants", "says"),
    [
        ({}, 0, "variants must be at least 1, got 0"),
        ({"maps": ("oracle_canny",)}, 1, "oracle_canny is made from hq, not from lq"),
        ({"maps": ("cany",)}, 1, "unknown guidance type 'cany'"),
        ({"maps": ("canny", "canny")}, 1, "twice: canny, canny"),
        ({"crop_size_px": 30}, 1, "crop_size_px 30 is not a multiple of scale_factor 4"),
        ({"degradation": "strong"}, 1, "unknown degradation 'strong'"),
    ],
)
def test_what_cannot_be_baked_is_refused(shards: Path, options: dict, variants: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        bake(shards, "x", BakeOptions(**{"crop_size_px": 32, **options}), variants)


@pytest.mark.parametrize("field", ["crop_size_px", "degradation", "scale_factor", "usm_target", "maps", "seed"])
def test_every_option_changes_what_is_baked(shards: Path, field: str) -> None:
    plain = {"degradation": "realesrgan_strong", "scale_factor": 4, "crop_size_px": 32, "usm_target": False}
    plain |= {"maps": (), "seed": 0}
    others = {"degradation": "first_order", "scale_factor": 2, "crop_size_px": 40, "usm_target": True}
    others |= {"maps": ("canny",), "seed": 1}
    for name, options in (("a", plain), ("b", plain | {field: others[field]})):
        bake(shards, name, BakeOptions(**options), 1)
    assert content(shards / "baked" / "a").keys() == content(shards / "baked" / "b").keys()
    for tar, (bytes_a, _) in content(shards / "baked" / "a").items():
        assert bytes_a != content(shards / "baked" / "b")[tar][0]


def test_baked_maps_say_which_weights_made_them(shards: Path) -> None:
    """Other weights make other maps: they do not go into the same set, and one that is not used is an error."""
    options = BakeOptions("bicubic", 4, 32, maps=("depth",))
    bake(shards, "deep", options, 1, sources={"depth": "tiny"})
    for batch in shard_module(shards, baked="deep").train_dataloader():
        stored = {"keys": batch["keys"], "lq": batch["lq"]}
        networks = Networks(ExtractorConfig({"depth": "tiny"}))
        expected = extract_guidance(stored, resolve_guidance(["depth"]), 4, networks)["depth"]
        assert (expected - batch["maps"]["depth"]).abs().max() <= 0.5 / 255 + 1e-4
    with pytest.raises(UsageError, match="begun as another set: extractors was"):
        bake(shards, "deep", options, 2)
    with pytest.raises(UsageError, match="names hed, which"):
        bake(shards, "other", options, 1, sources={"hed": "tiny"})


def test_latents_are_those_that_training_would_have_made(shards: Path) -> None:
    load, prior = partial(load_latents, "tiny"), load_prior()
    bake(shards, "latents", BakeOptions("bicubic", 4, 32, latents="tiny"), 1, load_latents=load)
    batch = next(iter(shard_module(shards, baked="latents").train_dataloader()))
    torch.testing.assert_close(batch["latents"], prior.encode(batch["hq"]))
    mixed = shard_module(shards, baked="latents", baked_share=0.5, train_samples=30).train_dataloader()
    found = [(all(key.count("/") == 2 for key in batch["keys"]), "latents" in batch) for batch in mixed]
    assert all(baked == kept for baked, kept in found) and len({kept for _, kept in found}) == 2
    with pytest.raises(UsageError, match="latents are '', and there is an encoder"):
        bake(shards, "other", BakeOptions("bicubic", 4, 32), 1, load_latents=load)
