"""The demo's server from outside: what strangers on the line can ask for, and what it costs."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megasr.inference.demo import make_page, serve
from megasr.inference.pipeline import MegaSRPipeline
from megasr.networks.config import AdapterConfig
from megasr.rng import numpy_generator
from megasr.semantics.tags import TaggerConfig
from megasr.training.config import SamplerConfig
from megasr.training.module import MegaSRModule

MAX_PIXELS = 10_000
FIELDS = ["", "as trained", "none", 0, True, 1]


class Client:
    """Speaks the protocol that the page speaks."""

    def __init__(self, address: str) -> None:
        self.uploads: list[str] = []
        self.address = f"{address.rstrip('/')}/gradio_api"

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        request = urllib.request.Request(f"{self.address}{path}", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def upload(self, content: bytes, name: str = "photo.png") -> tuple[int, bytes]:
        head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--edge--\r\n"
        status, answer = self.ask("/upload", body, "multipart/form-data; boundary=edge")
        self.uploads += json.loads(answer) if status == 200 else []
        return status, answer

    def run(self, function: str, path: str, *fields: Any, **more: str) -> str:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
        _, answer = self.ask(f"/call/{function}", json.dumps({"data": [file, *fields]}).encode())
        return self.ask(f"/call/{function}/{json.loads(answer)['event_id']}")[1].decode()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    pytest.importorskip("gradio")
    tagger = TaggerConfig(kind="clip", model="tiny", vocabulary="tiny")
    adapter = AdapterConfig(guidance=("canny",), saft_width=16, fusion_init="as_drawn")
    sampler = SamplerConfig(num_steps=1, start_fraction=0.8)
    pipeline = MegaSRPipeline(MegaSRModule(prior="tiny", init="tiny", adapter=adapter, sampler=sampler, tagger=tagger))
    page = make_page(pipeline, max_pixels=MAX_PIXELS)
    address = serve(page, max_pixels=MAX_PIXELS)
    assert address.startswith("http://127.0.0.1:"), "nobody else is let in unless it is asked for"
    client = Client(address)
    yield client
    page.close()
    assert client.uploads
    assert not [path for path in client.uploads if Path(path).exists()], "photographs are not kept"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def photograph(number: int = 0) -> bytes:
    return png(numpy_generator(number, "demo").integers(0, 256, (12, 12, 3), dtype=np.uint8))


def bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(side * (1 + 3 * side)))), (b"IEND", b"")
    chunks = (struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "README.md", "/proc/self/environ",
     "http://127.0.0.1:1/"],
)  # fmt: skip
def test_files_of_the_machine_are_not_served(client: Client, path: str) -> None:
    assert client.ask(f"/file={path}")[0] == 403
    if not path.startswith("%"):
        said = client.run("upscale", path, *FIELDS)
        assert "event: error" in said
        assert "root:" not in said


def test_names_of_uploads_lead_nowhere(client: Client) -> None:
    for name in ("../../../evil.png", "/etc/evil.png", "<img src=x onerror=alert(1)>.png"):
        status, answer = client.upload(photograph(), name)
        assert status == 200
        (path,) = json.loads(answer)
        assert ".." not in Path(path).parts and "gradio" in path
        assert "<" not in path
    (path,) = json.loads(client.upload(b"<script>alert(1)</script>", "page.html")[1])
    with urllib.request.urlopen(f"{client.address}/file={path}") as answer:
        assert answer.headers["Content-Type"] != "text/html"
        assert answer.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize("side", [200, 6000])
def test_a_large_photograph_is_refused_before_it_is_decoded(client: Client, side: int) -> None:
    (path,) = json.loads(client.upload(bomb(side))[1])
    began = time.monotonic()
    assert f"{side}x{side} px are more than 10000 px" in client.run("upscale", path, *FIELDS)
    assert 'data: [""]' in client.run("suggest", path)
    assert time.monotonic() - began < 10


def test_what_is_no_image_is_refused(client: Client) -> None:
    for content, name in ((b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.eps"), (b"<svg/>", "a.svg")):
        (path,) = json.loads(client.upload(content, name)[1])
        assert "event: error" in client.run("upscale", path, *FIELDS, orig_name=name)


def test_large_files_are_not_taken_in(client: Client) -> None:
    assert client.upload(bytes(8 * MAX_PIXELS + 2**20 + 1))[0] == 413


def test_every_visitor_gets_the_own_picture(client: Client) -> None:
    said: dict[int, str] = {}

    def visit(number: int) -> None:
        (path,) = json.loads(client.upload(photograph(number))[1])
        assert "event: complete" in client.run("suggest", path)
        said[number] = client.run("upscale", path, *FIELDS[:3], number, *FIELDS[4:])

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(6)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert sorted(said) == list(range(6))
    assert all("12x12 to 48x48 px" in text and f"seed {number}" in text for number, text in said.items())
