"""The demo page's fields, and what is said where gradio is missing. The page itself: tests/browser."""

import sys

import pytest

from megasr import cli
from megasr.inference.demo import AS_TRAINED, read_options


def test_fields_become_options():
    values = ("a cat ", "fast", "adain", 3.0, True, False, 0.5, 2.0)
    assert read_options(("depth", "hed"), values, 64) == {
        "prompt": "a cat", "seed": 3, "tile": 64, "guidance": {"depth": 0.5, "hed": 0.0}, "preset": "fast",
        "color_fix": "adain",
    }  # fmt: skip
    assert read_options((), ("", AS_TRAINED, AS_TRAINED, 0), None) == {"prompt": "", "seed": 0, "tile": None}


def test_without_gradio_the_way_to_get_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "--checkpoint", "tiny", "--device", "cpu"]) == 1
    assert "pip install megasr[demo]" in capsys.readouterr().err
