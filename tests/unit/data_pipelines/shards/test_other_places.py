"""Shards that others made, copies that went bad, names that are not UTF-8, folders that two would write to."""

from __future__ import annotations

import io
import multiprocessing
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.shards.bake import bake
from data_pipelines.shards.baked import BakedSource, BakeOptions
from data_pipelines.shards.foreign import index_shards
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.verify import verify
from megasr.commands.lightning_cli import _check_prior, _check_tower
from megasr.commands.shards import tower_name
from megasr.errors import MegaSRError, UsageError
from megasr.files import locked_folder
from megasr.semantics.clip import VisionConfig
from tests.helpers.shard_sets import encoded, make_shards, photo_files, pixels, shard_module, train_and_eval
from tests.helpers.training import make_module


def test_tars_whose_headers_spell_names_in_ascii(tmp_path: Path) -> None:
    """Python's tarfile writes "caf?.png" into the plain header, and the name into one before it."""
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(("café", "plain", "日本")):
            member, content = tarfile.TarInfo(f"{name}.png"), encoded(pixels(number))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    index_shards(tmp_path, "CC0")
    assert verify(tmp_path) == []
    samples = [ShardSource(str(tmp_path)).read(number) for number in range(3)]
    assert [sample.key for sample in samples] == ["café", "plain", "日本"]
    assert all(np.array_equal(sample.hq, pixels(number)) for number, sample in enumerate(samples))


def test_names_that_are_not_utf8_are_drawn_like_others(tmp_path: Path) -> None:
    def files(number: int) -> tuple[str, dict[str, bytes]]:
        return f"photo \udcff{number}", photo_files(number)[1]

    make_shards(tmp_path / "shards", [3], files)
    make_shards(tmp_path / "eval", [1], photo_files)
    (batch,) = shard_module(tmp_path / "shards", train_samples=3, degradation="realesrgan_strong").train_dataloader()
    assert sorted(key[:8] for key in batch["keys"]) == [f"photo \udcff{n}" for n in range(3)]


def test_a_baked_set_keeps_the_indices_of_all_variants(tmp_path: Path) -> None:
    shards = train_and_eval(tmp_path)
    bake(shards, "mild", BakeOptions("bicubic", 4, 32), 3)
    assert BakedSource(ShardSource(str(shards), shuffle_shards=5), "mild").baked.draws.window == 15


def test_a_filter_also_holds_for_baked_draws(tmp_path: Path) -> None:
    def files(number: int) -> tuple[str, dict[str, bytes]]:
        key, content = photo_files(number)
        flat = np.full((60, 72, 3), 90, np.uint8)
        return key, {**content, "png": encoded(flat)} if number == 4 else content

    make_shards(tmp_path / "shards", [5, 4, 3], files)
    make_shards(tmp_path / "eval", [1], photo_files)
    bake(tmp_path / "shards", "mild", BakeOptions("bicubic", 4, 32), 1)
    data = shard_module(tmp_path / "shards", baked="mild", min_sharpness=5.0)
    skipped = [one for batch in data.train_dataloader() for sample in batch.get("skipped", ()) for one in sample]
    assert skipped == [("photo 04", "less sharp than 5.0", False)]


def _hold(folder: Path, held: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with locked_folder(folder):
        held.set()
        done.wait(20)


def test_two_do_not_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = multiprocessing.get_context("fork")
    held, done = fork.Event(), fork.Event()
    process = fork.Process(target=_hold, args=(tmp_path / "set", held, done))
    process.start()
    assert held.wait(20)
    monkeypatch.setattr("megasr.files._LOCK_WAIT_S", 0.1)
    with pytest.raises(MegaSRError, match="another process is writing to .*set"), locked_folder(tmp_path / "set"):
        pass
    done.set()
    process.join()
    with locked_folder(tmp_path / "set"):
        pass


def test_tokens_of_another_tower_are_refused(tmp_path: Path) -> None:
    weights, others = tmp_path / "weights.pt", tmp_path / "others.pt"
    weights.write_bytes(b"some")
    others.write_bytes(b"other")
    tokens = tower_name("ViT-H-14", weights)
    _check_tower(VisionConfig(str(weights), "ViT-H-14"), tokens)
    wrong = ((None, "not set"), (VisionConfig(str(weights), "ViT-L-14"), "ViT-L-14"))
    for vision, found in (*wrong, (VisionConfig(str(others), "ViT-H-14"), tower_name("ViT-H-14", others))):
        with pytest.raises(UsageError, match=f"are those of {tokens}, model.vision is {found}"):
            _check_tower(vision, tokens)
    with pytest.raises(MegaSRError, match="cannot read .*none.pt: No such file"):
        _check_tower(VisionConfig(str(tmp_path / "none.pt"), "ViT-H-14"), tokens)


def test_latents_of_another_prior_are_refused() -> None:
    module = make_module()
    _check_prior(module, module.prior_fingerprint)
    with pytest.raises(UsageError, match=f"those of the prior 0123abcd, model.prior is {module.prior_fingerprint}"):
        _check_prior(module, "0123abcd")
