"""Lists of phrases: what is read, what is refused, and the lists that ship with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from megasr.errors import MegaSRError, UsageError
from megasr.semantics.tags import list_vocabularies, load_vocabulary, read_phrases, read_thresholds

CLIP_RECIPE = Path(__file__).parents[3] / "experiments" / "tiny" / "clip_vision.yaml"


def written(folder: Path, text: str) -> Path:
    file = folder / "words.txt"
    file.write_text(text, encoding="utf-8")
    return file


def test_comments_and_blank_lines_are_no_phrases(tmp_path: Path) -> None:
    file = written(tmp_path, "\ufeff# head\n\n  red   brick wall \ncafé # a place\n#\n")
    assert read_phrases(file) == ("red brick wall", "café") == load_vocabulary(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\n\nGrass\ngrass\n", r"line 4: 'grass' is in line 3 already"),
        ("sky\nred, blue\n", r"line 2: 'red, blue' holds a comma"),
        ("# nothing\n\n", "none of its lines has a phrase"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read_phrases(written(tmp_path, text))
    assert "words.txt" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_absent_or_no_text_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vocabulary 'tinny' is neither general, tiny nor a file"):
        load_vocabulary("tinny")
    with pytest.raises(MegaSRError, match="labels.txt cannot be read: No such file"):
        read_phrases(tmp_path / "labels.txt")
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MegaSRError, match="it is not UTF-8 text"):
        read_phrases(tmp_path / "words.txt")


def test_thresholds_are_one_number_per_label(tmp_path: Path) -> None:
    assert torch.equal(read_thresholds(written(tmp_path, "0.65\n0.9\n"), 2), torch.tensor([0.65, 0.9]))
    for text, message in [
        ("0.5\n\n", "one threshold per line, but could not convert"),
        ("0.5\n1.5\n", "each must be from 0 to 1"),
        ("nan\n0.5\n", "each must be from 0 to 1"),
        ("0.5\n", "1 lines of thresholds for 2 labels"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_thresholds(written(tmp_path, text), 2)


def test_the_tiny_vocabulary_uses_words_that_the_tiny_clip_was_taught() -> None:
    taught = set(yaml.safe_load(CLIP_RECIPE.read_text())["model"]["init_args"]["words"])
    phrases = load_vocabulary("tiny")
    assert {word for phrase in phrases for word in phrase.split()} <= taught
    assert {"cloudy blue sky", "grass ground", "glass window", "red brick wall"} <= set(phrases)


def test_the_general_vocabulary_has_common_things() -> None:
    assert list_vocabularies() == ["general", "tiny"]
    phrases = load_vocabulary("general")
    assert 500 <= len(phrases) <= 1500
    assert {"person", "dog", "car", "tree", "building", "brick wall", "sky", "water drops"} <= set(phrases)
