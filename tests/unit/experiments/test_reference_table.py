"""The table over all references: what it says, what it refuses, and that README shows the committed numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.reference.__main__ import main
from experiments.reference.measure import Workplace
from experiments.reference.records import REFERENCES, Reference, SeedRun, all_references, write_reference
from experiments.reference.table import AGAINST, BEGIN, END, NOTHING, make_table
from megasr.errors import UsageError
from megasr.evaluation.protocol import WEIGHT_FREE_V1
from megasr.evaluation.result import Row

PLATFORM = {"cpu": "a CPU", "cores": 2, "machine": "Linux", "device": "cpu", "threads": 1, "versions": {}}


def _rows(ssim: float, images: int = 4) -> list[Row]:
    rows = []
    for i in range(images):
        values = dict.fromkeys(WEIGHT_FREE_V1.metric_names, 0.5 + 0.01 * i)
        rows.append({"key": f"eval-scene/{i}", **values, "psnr_y": 20.0 + i, "ssim_y": ssim + 0.1 * i})
    return rows


def _reference(name: str, ssim: float, seeds: tuple[int, ...] = (0, 1)) -> Reference:
    runs = [SeedRun(s, _rows(ssim + 0.01 * s), 90.0, 1.0, PLATFORM, "abc", f"2026-01-0{s + 1}T00:00") for s in seeds]
    prints: dict[str, str | None] = {"recipe": name, "prior": "p", "protocol": WEIGHT_FREE_V1.fingerprint}
    return Reference(name, prints, "weight-free-v1", 60, 8, {}, _rows(0.4), tuple(runs))


BASELINE, BETTER = _reference(AGAINST["tiny"], 0.5), _reference("tiny/better", 0.52)


def _cells(text: str) -> dict[str, dict[str, str]]:
    """Adapter -> heading -> cell, of both tables."""
    found: dict[str, dict[str, str]] = {}
    for table in text.split("\n\n")[:2]:
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        for row in rows:
            found.setdefault(row[0], {}).update(zip(head, row, strict=True))
    return found


def test_differences_are_paired_over_images_and_seeds() -> None:
    rows = _cells(make_table([BETTER, BASELINE]))
    assert list(rows) == [
        "bicubic",
        "[controlnet_only](experiments/tiny/controlnet_only.yaml)",
        "[better](experiments/tiny/better.yaml)",
    ]
    better = rows["[better](experiments/tiny/better.yaml)"]
    # The images differ by 0.3 and the seeds by 0.01; the paired difference is the same for all of them.
    assert better["ssim_y - controlnet_only"] == "+0.0200 [+0.0200, +0.0200]"
    # Two seeds 0.01 apart: 12.706 standard errors of 0.005.
    assert better["ssim_y - bicubic"] == "+0.1250 [+0.0615, +0.1885]"
    assert better["ssim_y ↑"].startswith("0.6750 [0.")
    assert better["psnr_y ↑"].startswith("21.50 [")
    assert better["gmsd ↓"].startswith("0.5150 [")
    assert (better["training"], better["seeds"], better["steps"]) == ("1.5 min", "0, 1", "60")
    assert better["date"] == "2026-01-02"
    assert better["fsim - controlnet_only"] == "+0.0000 [+0.0000, +0.0000]"
    baseline = rows["[controlnet_only](experiments/tiny/controlnet_only.yaml)"]
    assert (baseline["ssim_y - controlnet_only"], baseline["fsim - controlnet_only"]) == ("-", "-")
    assert rows["bicubic"]["ssim_y ↑"].startswith("0.5500 [")


def test_only_common_seeds_are_paired() -> None:
    other = _reference("tiny/other", 0.53, seeds=(1, 2))
    rows = _cells(make_table([BASELINE, other, _reference("tiny/third", 0.5, seeds=(3,))]))
    column = {name.split("]")[0][1:]: row.get("ssim_y - controlnet_only") for name, row in rows.items()}
    assert column["other"] == "+0.0300 [+0.0300, +0.0300]"
    assert column["third"] == "no common seed"


def test_without_the_recipe_to_compare_with_there_is_no_such_column() -> None:
    assert "controlnet_only" not in make_table([BETTER])
    assert "ssim_y - better" in make_table([BETTER, BASELINE], against="tiny/better")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: replace(r, fingerprints=r.fingerprints | {"prior": "q"}), "another prior"),
        (lambda r: replace(r, fingerprints=r.fingerprints | {"protocol": "q"}), "another protocol"),
        (lambda r: replace(r, bicubic=_rows(0.45)), "another evaluation images"),
        (lambda r: replace(r, bicubic=_rows(0.4, images=3)), "another evaluation images"),
    ],
)
def test_what_is_not_comparable_is_refused(change: Callable[[Reference], Reference], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_table([BASELINE, change(BETTER)])


def test_the_block_of_a_file_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_reference(BETTER, tmp_path / "references" / "tiny" / "better.json")
    page, folder = tmp_path / "page.md", f"--references={tmp_path / 'references'}"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([folder, "table", "--write", str(page)], Workplace()) == 0
    table = make_table([BETTER])
    assert page.read_text() == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"
    page.write_text("no marks\n")
    assert main([folder, "table", "--write", str(page)], Workplace()) == 2
    assert page.read_text() == "no marks\n"
    assert "nowhere to write" in capsys.readouterr().err
    assert main([folder, "table", "--write", str(tmp_path / "absent.md")], Workplace()) == 2
    assert "cannot read" in capsys.readouterr().err


def test_readme_shows_the_committed_references(root: Path) -> None:
    references = all_references(REFERENCES)
    block = (root / "README.md").read_text().partition(BEGIN)[2].partition(END)[0].strip()
    assert block == make_table(references), "run: python -m experiments.reference table --write README.md"
    assert references or block == NOTHING
