"""README's tables are those of the kept results."""

from __future__ import annotations

from pathlib import Path

from experiments.tables import BLOCK, make_tables, marks, read_scores


def test_readme_holds_the_tables_of_the_kept_results(root: Path) -> None:
    begin, close = marks(BLOCK)
    _, _, rest = (root / "docs/results.md").read_text().partition(f"{begin}\n")
    block, end, _ = rest.partition(f"\n{close}")
    assert end, "README has no tables"
    assert block == make_tables(), "run: python -m experiments.tables --write docs/results.md"


def test_differences_pair_seeds_and_images(root: Path) -> None:
    scores = read_scores(root / "experiments/reference/survival")
    differences, keys = scores.differences("oracle", "none", "fsim")
    assert differences.shape == (3, len(keys)) == (3, 96)
    mine, other = (scores.values(name, "fsim")[1][keys[7]] for name in ("oracle", "none"))
    assert differences[1, 7] == mine - other
