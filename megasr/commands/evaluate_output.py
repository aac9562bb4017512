"""What `megasr evaluate` prints and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megasr.evaluation.result import Evaluation
    from megasr.evaluation.table_content import Labelled

ENDINGS = (".json", ".csv", ".md", ".tex")


def describe(evaluation: Evaluation) -> list[str]:
    """What was found, in lines for a terminal."""
    from megasr.evaluation.distribution import caveat
    from megasr.evaluation.metric_weights import altered_files

    count = len(evaluation.rows)
    found = f"{count} image{'s' * (count != 1)}" + (f" of {evaluation.data}" if evaluation.data else "")
    lines = [f"{evaluation.protocol} ({evaluation.fingerprint}), {found}"]
    protocol = evaluation.get_protocol()
    names = [n for n in protocol.metric_names if n in {**evaluation.means, **evaluation.set_values}]
    width = max(map(len, [*names, *evaluation.skipped]))
    for name in names:
        arrow = "↑" if protocol.metric(name).higher_is_better else "↓"
        value = evaluation.means.get(name, evaluation.set_values.get(name))
        low_high = evaluation.intervals.get(name)
        interval = "" if low_high is None else f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]"
        lines.append(f"  {name:<{width}} {arrow} {value:9.4f}{interval}")
    lines += [f"  {name:<{width}}   skipped: {why}" for name, why in evaluation.skipped.items()]
    if evaluation.intervals:
        lines.append("intervals: 95 %, bootstrap over photographs")
    if "fid" in evaluation.set_values and (text := caveat(len(evaluation.rows))):
        lines.append(f"note: {text}")
    for name in altered_files(evaluation.provenance.get("weights", {})):
        lines.append(f"note: {name} is not the published file of this name, by its sha256")
    return lines


def beside(evaluation: Evaluation, other: str, label: str) -> list[str]:
    """An evaluation beside a .json of before or a .csv of scores, in lines; published rows stand in the table."""
    from megasr.evaluation.against import deviations, paired_differences
    from megasr.evaluation.result import read_evaluation

    path = Path(other)
    if path.suffix == ".json":
        lines = [f"{label} minus {path}, image by image, with 95 % intervals:"]
        for found in paired_differences(evaluation, read_evaluation(path)):
            i = found.interval
            lines.append(f"  {found.metric:<12} {i.mean:+9.4f}  [{i.low:+.4f}, {i.high:+.4f}]  {found.verdict}")
        return lines
    if path.suffix == ".csv":
        lines = [f"{label}, absolute deviation from {path}, over {len(evaluation.rows)} images:"]
        for gap in deviations(evaluation, path):
            lines.append(f"  {gap.metric:<12} largest {gap.largest:.2e} ({gap.key}), median {gap.median:.2e}")
        return lines
    return []


def write(found: Sequence[Labelled], path: Path, rows: Sequence[Any]) -> None:
    """Write what the ending of the file asks for; `rows` are published ones. Raises MegaSRError when it cannot."""
    from megasr.evaluation import tables
    from megasr.evaluation.result import write_evaluation
    from megasr.files import write_whole

    evaluation = found[0][1]
    texts: dict[str, Callable[[], str]] = {
        ".csv": lambda: tables.rows_csv(evaluation) if len(found) == 1 else tables.means_csv(found, rows),
        ".md": lambda: tables.markdown(found, rows, intervals=True),
        ".tex": lambda: tables.latex(found, rows),
    }
    if path.suffix == ".json":
        write_evaluation(evaluation, path)
    else:
        write_whole(path, texts[path.suffix]().encode("utf-8", "surrogateescape"))  # names of files need not be UTF-8
