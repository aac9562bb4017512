"""A manifest is read back as it was written, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_pipelines.shards.manifest import Manifest, ShardEntry
from megasr.errors import MegaSRError

MANIFEST = Manifest(
    shards=(ShardEntry("shard-000000.tar", 2, 100, "a" * 64), ShardEntry("shard-000001.tar", 1, 50, "b" * 64)),
    fields={"jpg": 3, "txt": 1},
    licence="CC0 é",
    command="megasr shards pack photos",
    version="0.1.0",
    created="2026-01-31",
    dropped={"damaged image": 2},
)


def test_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json(), "here") == MANIFEST
    assert (MANIFEST.samples, MANIFEST.bytes) == (3, 150)


def shard(**changes: Any) -> dict[str, Any]:
    entry = {"name": "shard-000000.tar", "samples": 3, "bytes": 150, "sha256": "a" * 64}
    return {"shards": [entry | changes]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "other-1"}, "format is 'other-1'"),
        ({"licence": ...}, "lacks 'licence'"),
        ({"samples": 4}, "samples is 4, its shards add up to 3"),
        ({"bytes": 1}, "bytes is 1, its shards add up to 150"),
        ({"fields": {"jpg": "3"}}, "jpg should be a count, is '3'"),
        ({"dropped": []}, "not a shard manifest"),
        (shard(name="../shard.tar"), "'../shard.tar' is not the file name of a shard"),
        (shard(samples=-3), "samples should be a count, is -3"),
        (shard(sha256="A" * 64), "is not a sha256"),
        (shard(more=1), "unexpected keyword argument 'more'"),
        ({"shards": shard()["shards"] * 2, "samples": 6, "bytes": 300}, "a shard is listed more than once"),
    ],
)
def test_refuses(changes: dict[str, Any], says: str) -> None:
    content = json.loads(MANIFEST.to_json()) | changes
    text = json.dumps({name: value for name, value in content.items() if value is not ...})
    with pytest.raises(MegaSRError) as error:
        Manifest.from_json(text, "set/manifest.json")
    assert str(error.value).startswith("set/manifest.json: ")
    assert says in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"format"', MANIFEST.to_json()[:-20]])
def test_refuses_what_is_no_manifest(text: str) -> None:
    with pytest.raises(MegaSRError, match=r"set/manifest\.json: not a shard manifest"):
        Manifest.from_json(text, "set/manifest.json")
