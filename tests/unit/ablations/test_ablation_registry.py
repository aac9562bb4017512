"""Ablations and studies: changes, differences, and what registering refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.registry import STUDIES, Ablation, Study, apply_changes, check_diff, diff, flatten, register
from ablations.studies import get_study, studies
from megasr.errors import UsageError

CONFIG = {"model": {"adapter": {"guidance": ["hed"], "width": 4}, "seed": 0}, "data": {"batch_size": 2}}
GUIDANCE = "model.adapter.guidance"


def _ablation(
    name: str = "canny", path: str = GUIDANCE, value: object = ("canny",), touches: str = GUIDANCE
) -> Ablation:
    return Ablation(name, {path: value}, (touches,), "for a test")


def test_changes_are_applied_to_a_copy() -> None:
    changed = apply_changes(CONFIG, _ablation())
    assert changed["model"] == {"adapter": {"guidance": ("canny",), "width": 4}, "seed": 0}
    assert changed["data"] == {"batch_size": 2}
    assert CONFIG["model"]["adapter"]["guidance"] == ["hed"]


def test_an_unknown_path_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"model\.adapter\.guidanc'; did you mean model\.adapter\.guidance"):
        apply_changes(CONFIG, _ablation(path="model.adapter.guidanc"))


def test_diff_lists_every_leaf_that_differs() -> None:
    after = {"model": {"adapter": {"guidance": ("hed",), "width": 8}, "seed": 0}, "data": {}}
    assert diff(CONFIG, after) == {
        "data": (None, {}),
        "data.batch_size": (2, None),
        "model.adapter.width": (4, 8),
    }
    assert flatten({"a": {"b": (1, 2)}}) == {"a.b": [1, 2]}


def test_an_ablation_must_change_something() -> None:
    with pytest.raises(UsageError, match=r"'canny' changes nothing \(model\.adapter\.guidance\)"):
        check_diff(_ablation(), CONFIG, CONFIG)


def test_an_ablation_must_stay_inside_what_it_touches() -> None:
    changed = apply_changes(CONFIG, _ablation())
    check_diff(_ablation(touches="model.adapter"), CONFIG, changed)
    with pytest.raises(UsageError, match=r"also changes model\.adapter\.guidance"):
        check_diff(_ablation(touches="data"), CONFIG, changed)
    with pytest.raises(UsageError, match="also changes"):  # a prefix of the text is not a prefix of the path
        check_diff(_ablation(touches="model.adapter.guid"), CONFIG, changed)


def test_duplicates_are_refused() -> None:
    with pytest.raises(UsageError, match="canny is registered twice"):
        Study("twice", "?", _ablation("none"), (_ablation(), _ablation()), "psnr_y")
    with pytest.raises(UsageError, match="'prior_selection' is registered twice"):
        register(studies()["prior_selection"])


def test_bad_names_are_refused() -> None:
    with pytest.raises(UsageError, match="ablation name 'a/b'"):
        _ablation("a/b")
    with pytest.raises(UsageError, match="study name 'My study'"):
        Study("My study", "?", _ablation("none"), (), "psnr_y")
    with pytest.raises(UsageError, match="control of study s 'noisy'"):
        Study("s", "?", _ablation("none"), (_ablation("noise"),), "psnr_y", {"noisy": "negative"})


def test_unknown_names_show_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean prior_selection"):
        get_study("prior_selecton")
    with pytest.raises(UsageError, match="segmentation"):
        get_study("prior_selection").ablation("segmentations")


def test_a_module_of_one_s_own_adds_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_studies.py").write_text(
        "from ablations.registry import Study, change, register\n"
        "reference = change('four', {'model.sampler.num_steps': 4}, 'four steps')\n"
        "one = change('one', {'model.sampler.num_steps': 1}, 'one step', 'Worse.')\n"
        "register(Study('my_study', 'How many steps?', reference, (one,), 'psnr_y'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MEGASR_IMPORT", "my_studies")
    monkeypatch.setattr(STUDIES, "_entries", dict(STUDIES._entries))
    assert get_study("my_study").ablations[0].hypothesis == "Worse."
    assert list(studies())[-1] == "my_study" and "prior_selection" in studies()
