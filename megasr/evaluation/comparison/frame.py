"""The HTML around the pictures: one file with its own styles, scripts and numbers, which may fetch nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from string import Template
from typing import Any

ASSETS = files("megasr") / "assets" / "comparison"
# Pictures, tables, divider with crops, and the keys: what every page with pictures is browsed with, in this order.
VIEWER_SCRIPTS = tuple(ASSETS / name for name in ("pictures.js", "tables.js", "viewer.js", "browse.js"))


def make_frame(
    template: Traversable,
    styles: Sequence[Traversable],
    scripts: Sequence[Traversable],
    facts: Mapping[str, Any],
    **parts: str,
) -> tuple[bytes, bytes]:
    """The page before and after its pictures.

    Args:
        template: HTML with $style, $script, their hashes, $data, and <!-- pictures --> where the pictures come.
        styles: style sheets, one after another.
        scripts: scripts in their order; they share one scope.
        facts: what the scripts read, as JSON takes it.
        parts: other names of the template -> HTML, whose texts are escaped.
    """
    style = "\n".join(_text(sheet) for sheet in styles)
    script = "\n".join(['"use strict";', *map(_text, scripts)])
    page = Template(_text(template)).substitute(
        parts,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        # "<" could end the element it is in; JSON can write it as an escape.
        data=json.dumps(facts, allow_nan=False).replace("<", "\\u003c"),
    )
    head, mark, tail = page.partition("<!-- pictures -->")
    assert mark
    return head.encode(), tail.encode()


def viewer_html() -> str:
    """The picture with its divider and crops, the table of images, and the list of keys."""
    return _text(ASSETS / "viewer.html")


def _text(asset: Traversable) -> str:
    return asset.read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy permits one inline element (CSP level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
