"""Checkpoints that are damaged, malformed, of other weights or hostile: one line each, and nothing of them runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from megasr.errors import MegaSRError, UsageError
from megasr.training.callbacks import EMA
from megasr.training.checkpoint import check_trained_state, read_checkpoint
from megasr.training.folders import SHIPPED
from megasr.training.last_checkpoint import LAST, PREVIOUS, find_last
from megasr.training.module import MegaSRModule
from tests.helpers.training import fit, make_batch, make_module

Checkpoint = dict[str, Any]
SEPARATOR = "\x1f"


@pytest.fixture(scope="module")
def module() -> MegaSRModule:
    return make_module()


@pytest.fixture(scope="module")
def whole(module: MegaSRModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training of two steps with EMA wrote."""
    path = tmp_path_factory.mktemp("run") / LAST
    fit(module, make_batch(), 2, callbacks=[EMA(0.5)]).save_checkpoint(path)
    return path


@pytest.fixture
def content(whole: Path) -> Checkpoint:
    checkpoint: Checkpoint = torch.load(whole, weights_only=True)
    return checkpoint


def weights_of(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    weights: dict[str, Any] = checkpoint["callbacks"]["EMA"]["shadow"] if kind == "EMA" else checkpoint["state_dict"]
    return weights


def change_bytes(path: Path, start: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[start : start + 8] = bytes(byte ^ 0x55 for byte in damaged[start : start + 8])
    path.write_bytes(damaged)


def assert_one_line(error: Any) -> None:
    assert "\n" not in str(error.value)
    assert "likely succeed" not in str(error.value)
    assert "weights_only" not in str(error.value)


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys", [("state_dict",), ("callbacks", "EMA", "shadow"), ("optimizer_states", "0", "state", "3", "exp_avg")]
)
def test_a_changed_byte_is_refused(whole: Path, content: Checkpoint, keys: tuple[str, ...], tmp_path: Path) -> None:
    node: Any = content
    for key in keys:
        node = node[int(key)] if key.isdigit() else node[key]
    tensor = max(node.values(), key=torch.Tensor.numel) if isinstance(node, dict) else node
    path = tmp_path / LAST
    path.write_bytes(whole.read_bytes())
    change_bytes(path, path.read_bytes().index(tensor.numpy().tobytes()))
    with pytest.raises(MegaSRError, match=rf"cannot read checkpoint {path}: \w+/data/\d+ was changed"):
        MegaSRModule.from_checkpoint(path)
    (tmp_path / PREVIOUS).write_bytes(whole.read_bytes())
    with pytest.warns(UserWarning, match=r"\w+/data/\d+ was changed"):
        assert find_last(tmp_path) == tmp_path / PREVIOUS


def test_checkpoints_from_before_and_what_is_no_tensor_are_compared_as_well(tmp_path: Path) -> None:
    path = tmp_path / "adapter.ckpt"
    path.write_bytes(SHIPPED["tiny"].read_bytes())
    change_bytes(path, 2000)  # in the pickle, which is the first record
    with pytest.raises(MegaSRError, match=r"adapter\.ckpt: adapter/data\.pkl was changed"):
        read_checkpoint(path)


def test_what_is_compressed_is_not_expanded(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(1 << 20))
    with pytest.raises(MegaSRError, match=r"bomb\.ckpt: its records are compressed"):
        read_checkpoint(tmp_path / "bomb.ckpt")


# Other weights --------------------------------------------------------------------------------------------------------

FROZEN = "prior.vae.decoder.conv_out.weight"
CHANGES: dict[str, tuple[Callable[[dict[str, Any], str], Any], str]] = {
    "missing": (lambda weights, name: weights.pop(name), "it lacks {name} "),
    "foreign": (lambda weights, name: weights.update(foreign=torch.ones(3)), "does not train foreign "),
    "frozen": (lambda weights, name: weights.update({FROZEN: torch.zeros(3)}), f"does not train {FROZEN} "),
    "shape": (lambda weights, name: weights.update({name: weights[name][None]}), "{name} has shape (1, "),
    "complex": (lambda weights, name: weights.update({name: weights[name] + 0j}), "{name} holds complex64"),
    "integer": (lambda weights, name: weights.update({name: weights[name].long()}), "{name} holds int64"),
    "nan": (lambda weights, name: weights[name].view(-1)[0].fill_(float("nan")), "{name} holds numbers that are not"),
    "sparse": (lambda weights, name: weights.update({name: weights[name].to_sparse()}), "{name} is no dense tensor"),
    "number": (lambda weights, name: weights.update({name: 3}), "{name} is no dense tensor but int"),
    "empty": (lambda weights, name: weights.clear(), "no weights in {kind}"),
}


@pytest.mark.parametrize("kind", ["state_dict", "EMA"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_state_holds_exactly_what_is_trained(
    module: MegaSRModule, content: Checkpoint, kind: str, change: str
) -> None:
    check_trained_state(module, content, module.prior_fingerprint, "a.ckpt")
    weights = weights_of(content, kind)
    name = sorted(weights)[5]
    apply, says = CHANGES[change]
    apply(weights, name)
    with pytest.raises(MegaSRError) as error:
        check_trained_state(module, content, module.prior_fingerprint, "a.ckpt")
    assert str(error.value).startswith("a.ckpt")
    assert says.format(name=name, kind=kind) in str(error.value)
    assert kind in str(error.value)


@pytest.mark.parametrize("kind", ["state_dict", "EMA"])
@pytest.mark.parametrize("change", ["frozen", "nan"])
def test_a_frozen_weight_reaches_neither_a_restoration_nor_a_start(
    content: Checkpoint, tmp_path: Path, kind: str, change: str
) -> None:
    weights = weights_of(content, kind)
    CHANGES[change][0](weights, min(weights))
    torch.save(content, tmp_path / "a.ckpt")
    named = FROZEN if change == "frozen" else min(weights)
    with pytest.raises(MegaSRError, match=f"a.ckpt.*{named}"):
        MegaSRModule.from_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(MegaSRError, match=f"model.init .*a.ckpt.*{named}"):
        make_module(init=str(tmp_path / "a.ckpt"))


# Malformed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [([1], "it holds a list"), (None, "it holds a NoneType"), ("text", "it holds a str"), ({}, "it has no state_dict")],
)
def test_what_is_no_dictionary_of_a_training_is_named(tmp_path: Path, value: Any, says: str) -> None:
    torch.save(value, tmp_path / "a.ckpt")
    with pytest.raises(MegaSRError, match=f"a.ckpt: not a checkpoint of .*{says}") as error:
        MegaSRModule.from_checkpoint(tmp_path / "a.ckpt")
    assert_one_line(error)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hyper_parameters", None, "its hyper_parameters are not those of an adapter"),
        ("hyper_parameters", {"adapter": {"colour": 1}}, "its hyper_parameters are not those of an adapter"),
        ("hyper_parameters", {"seeds": 1}, "its hyper_parameters are not those of an adapter"),
        ("state_dict", [], "no weights in state_dict"),
        ("callbacks", {"EMA": None}, "no weights in EMA"),
    ],
)
def test_entries_of_other_kinds_are_named(content: Checkpoint, tmp_path: Path, key: str, value: Any, says: str) -> None:
    torch.save({**content, key: value}, tmp_path / "a.ckpt")
    with pytest.raises(MegaSRError, match=f"a.ckpt.*{says}") as error:
        MegaSRModule.from_checkpoint(tmp_path / "a.ckpt")
    assert_one_line(error)


@pytest.mark.parametrize("key", ["hyper_parameters", "prior_fingerprint", "pytorch-lightning_version"])
def test_absent_entries_are_named(content: Checkpoint, tmp_path: Path, key: str) -> None:
    del content[key]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(MegaSRError, match=f"a.ckpt: not a checkpoint of .* it has no {key}".replace(" it", ".it")):
        MegaSRModule.from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("address", ["http://a/b.ckpt", "s3://a/b.ckpt", "hf://a/b.ckpt", "cache::https://a/b.ckpt"])
def test_an_address_is_to_be_downloaded(address: str) -> None:
    with pytest.raises(UsageError, match=f"{address} is not on this machine: download it"):
        MegaSRModule.from_checkpoint(address)


# Hostile --------------------------------------------------------------------------------------------------------------


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def write_folder(folder: Path, checkpoint: Checkpoint) -> Path:
    """A checkpoint as several processes write it."""
    tensors = {SEPARATOR.join(("state_dict", name)): value for name, value in checkpoint["state_dict"].items()}
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    torch.save({**checkpoint, "state_dict": dict.fromkeys(checkpoint["state_dict"])}, folder / "plain.pt")
    return folder


def change_metadata(folder: Path, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def as_zip(path: Path, content: Checkpoint, hostile: Hostile) -> None:
    torch.save({**content, "more": hostile}, path)


def as_old_format(path: Path, content: Checkpoint, hostile: Hostile) -> None:
    torch.save({**content, "more": hostile}, path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, content: Checkpoint, hostile: Hostile) -> None:
    path.write_bytes(pickle.dumps(hostile))


def in_plain(path: Path, content: Checkpoint, hostile: Hostile) -> None:
    torch.save({**content, "more": hostile}, write_folder(path, content) / "plain.pt")


def as_metadata(path: Path, content: Checkpoint, hostile: Hostile) -> None:
    (write_folder(path, content) / ".metadata").write_bytes(pickle.dumps(hostile))


def in_metadata(path: Path, content: Checkpoint, hostile: Hostile) -> None:
    change_metadata(write_folder(path, content), lambda metadata: setattr(metadata, "planner_data", hostile))


def as_bytes_entry(path: Path, content: Checkpoint, hostile: Hostile) -> None:
    """DCP reads what is no tensor with torch.load(weights_only=False)."""

    def change(metadata: Any) -> None:
        name = next(iter(metadata.state_dict_metadata))
        tensor, entry = metadata.state_dict_metadata[name], BytesStorageMetadata()
        entry.size, entry.properties = tensor.size, tensor.properties  # type: ignore[attr-defined]
        metadata.state_dict_metadata[name] = entry
        index = next(index for index in metadata.storage_data if index.fqn == name)
        place = metadata.storage_data.pop(index)
        place.relative_path, place.offset, place.length = "hostile", 0, len(payload.getvalue())
        metadata.storage_data[MetadataIndex(name)] = place

    payload = io.BytesIO()
    torch.save(hostile, payload)
    (write_folder(path, content) / "hostile").write_bytes(payload.getvalue())
    change_metadata(path, change)


@pytest.mark.parametrize(
    "write", [as_zip, as_old_format, as_pickle, in_plain, as_metadata, in_metadata, as_bytes_entry]
)
def test_nothing_of_a_checkpoint_runs(content: Checkpoint, tmp_path: Path, write: Any) -> None:
    hostile = Hostile(tmp_path / "it ran")
    write(tmp_path / "a.ckpt", content, hostile)
    with pytest.raises(MegaSRError, match=r"cannot read checkpoint .*a\.ckpt: ") as error:
        MegaSRModule.from_checkpoint(tmp_path / "a.ckpt")
    assert_one_line(error)
    with pytest.raises(MegaSRError):
        make_module(init=str(tmp_path / "a.ckpt"))
    with pytest.raises(MegaSRError, match="is damaged|cannot read"):
        (tmp_path / "a.ckpt").rename(tmp_path / LAST)
        read_checkpoint(find_last(tmp_path))
    assert not hostile.mark.exists()


def test_a_folder_is_read_and_what_has_changed_in_it_is_named(content: Checkpoint, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / LAST, content)
    assert find_last(tmp_path) == folder
    read = read_checkpoint(folder)
    assert all(torch.equal(read["state_dict"][name], value) for name, value in content["state_dict"].items())

    name, tensor = max(content["state_dict"].items(), key=lambda item: item[1].numel())
    (file,) = folder.glob("*.distcp")
    written = file.read_bytes()
    change_bytes(file, written.index(tensor.numpy().tobytes()))
    with pytest.raises(MegaSRError, match=f"{folder}: state_dict.{name} was changed or cut off"):
        read_checkpoint(folder)
    write_folder(tmp_path / PREVIOUS, content)
    with pytest.warns(UserWarning, match="last.ckpt is damaged"):
        assert find_last(tmp_path) == tmp_path / PREVIOUS

    file.write_bytes(written)
    file.with_name("outside").write_bytes(written)

    def lead_outside(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            place.relative_path = f"../{LAST}/outside"

    change_metadata(folder, lead_outside)
    with pytest.raises(MegaSRError, match="names files outside of the folder"):
        read_checkpoint(folder)
