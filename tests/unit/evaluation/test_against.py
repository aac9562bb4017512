"""An evaluation beside another one and beside published scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.comparison import deviations, paired_differences
from megasr.evaluation.evaluator import Evaluation
from megasr.evaluation.protocol import WEIGHT_FREE_V1


def _evaluation(**values: list[float]) -> Evaluation:
    count = len(next(iter(values.values())))
    rows = tuple({"key": f"{i}", **{name: column[i] for name, column in values.items()}} for i in range(count))
    means = {name: sum(column) / count for name, column in values.items()}
    return Evaluation(WEIGHT_FREE_V1.name, WEIGHT_FREE_V1.fingerprint, rows, means)


BASE = [20.0 + i for i in range(12)]


def test_differences_are_of_each_image_and_know_the_direction() -> None:
    reference = _evaluation(psnr_y=BASE, gmsd=BASE, ssim_y=BASE)
    mine = _evaluation(
        gmsd=[x + 0.5 + 0.01 * i for i, x in enumerate(BASE)],
        psnr_y=[x + 0.5 + 0.01 * i for i, x in enumerate(BASE)],
        ssim_y=[x + (-1) ** i for i, x in enumerate(BASE)],
        fsim=BASE,
    )
    shuffled = replace(reference, rows=reference.rows[::-1])
    found = {difference.metric: difference for difference in paired_differences(mine, shuffled)}
    assert found["psnr_y"].interval.mean == pytest.approx(0.555)
    assert 0.5 < found["psnr_y"].interval.low < 0.555 < found["psnr_y"].interval.high < 0.61
    assert {name: difference.verdict for name, difference in found.items()} == {
        "psnr_y": "better",
        "gmsd": "worse",
        "ssim_y": "no difference shown",
    }


def test_other_protocols_and_other_images_are_refused() -> None:
    mine = _evaluation(psnr_y=BASE)
    with pytest.raises(UsageError, match="two protocols"):
        paired_differences(mine, replace(mine, fingerprint="00000000"))
    with pytest.raises(UsageError, match="missing: 11"):
        paired_differences(mine, _evaluation(psnr_y=BASE[:-1]))
    with pytest.raises(MegaSRError, match="which is .* here"):
        paired_differences(replace(mine, fingerprint="0"), replace(mine, fingerprint="0"))


def test_metrics_in_common_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no metric in common: psnr_y; gmsd"):
        paired_differences(_evaluation(psnr_y=BASE), _evaluation(gmsd=BASE))
    (tmp_path / "scores.csv").write_text("image,other\n0.png,1,\n")  # a comma too many
    with pytest.raises(UsageError, match="no column psnr_y; it has other"):
        deviations(_evaluation(psnr_y=[20.0]), tmp_path / "scores.csv")


def test_few_photographs_show_nothing_however_clear_they_look() -> None:
    better = [x + 1 + 0.01 * i for i, x in enumerate(BASE)]
    for count, verdict in ((5, "too few photographs"), (6, "better")):
        (found,) = paired_differences(_evaluation(psnr_y=better[:count]), _evaluation(psnr_y=BASE[:count]))
        assert found.interval.excludes_zero
        assert found.verdict == verdict


def test_weights_of_two_kinds_are_refused() -> None:
    mine = replace(_evaluation(psnr_y=BASE), provenance={"weights": {"a.pth": "1" * 16, "b.pth": "2" * 16}})
    other = replace(mine, provenance={"weights": {"a.pth": "3" * 16}})
    with pytest.raises(UsageError, match="two files a.pth, 1{16} and 3{16}"):
        paired_differences(mine, other)
    assert paired_differences(mine, replace(mine, provenance={"weights": {"c.pth": "4" * 16}}))


def test_deviations_from_published_scores(tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("image,psnr_y,other\n2.png,21.5,1\n0.png,20.0,1\n1.png,21.125,1\n9.png,0,1\n")
    table = deviations(_evaluation(psnr_y=[20.0, 21.0, 22.0], gmsd=[0.0, 0, 0]), scores)
    assert table.to_dict("index") == {"psnr_y": {"largest": 0.5, "median": 0.125, "key": "2"}}
    with pytest.raises(UsageError, match="no column gmsd; it has other, psnr_y"):
        deviations(_evaluation(gmsd=[1.0]), scores)
    with pytest.raises(UsageError, match="no scores of 3, 4$"):
        deviations(_evaluation(psnr_y=BASE[:5]), scores)
    with pytest.raises(UsageError, match=r"no scores of 3, .*, 23 \.\.\.$"):
        deviations(_evaluation(psnr_y=[20.0] * 25), scores)


def test_scores_name_files_with_or_without_ending(tmp_path: Path) -> None:
    mine = _evaluation(psnr_y=[20.0, 21.0])
    mine = replace(mine, rows=({"key": "a.1", "psnr_y": 20.0}, {"key": "b", "psnr_y": 21.0}))
    (tmp_path / "scores.csv").write_text("image,psnr_y\na.1,20\nb.PNG,21\n")
    assert deviations(mine, tmp_path / "scores.csv").loc["psnr_y", "largest"] == 0


@pytest.mark.parametrize("text", ["image,psnr_y\n0.png,high\n", "image,psnr_y\n0.png\n"])
def test_scores_that_cannot_be_read_name_file_and_column(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(MegaSRError, match=r"scores.csv, column psnr_y: "):
        deviations(_evaluation(psnr_y=[20.0]), tmp_path / "scores.csv")


@pytest.mark.parametrize("content", [None, b"\xff", b'image,psnr_y\n"0.png,20'])
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(MegaSRError, match=r"scores.csv is not a table"):
        deviations(_evaluation(psnr_y=[20.0]), tmp_path / "scores.csv")
