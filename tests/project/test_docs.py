"""The site builds strictly: links, included files and named classes exist; it asks nothing of any host."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from tests.helpers.sources import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    level = logging.getLogger("mkdocs").level
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()
        logging.getLogger("mkdocs").setLevel(level)
    return folder


def test_every_page_is_in_the_menu_and_asks_nothing_of_any_host(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for page in pages:
        loads = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', (site / f"{page}.html").read_text()
        )
        assert not [address for address in loads if "squidfunk" not in address], page


def test_the_config_reference_has_every_field_of_the_adapter(site: Path) -> None:
    from dataclasses import fields

    from megasr.networks.config import AdapterConfig

    text = (site / "config.html").read_text()
    assert not [field.name for field in fields(AdapterConfig) if f"<code>{field.name}</code>" not in text]


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1100


def test_the_example_of_extending_is_included(site: Path) -> None:
    assert "extract_gradient" in (site / "extending.html").read_text()
