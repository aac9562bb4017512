"""The zero-shot tagger: the tiny CLIP on held-out scenes, and a random CLIP without a sigmoid head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from data_pipelines.scenes.rendering import render_scene
from megasr.images import from_uint8
from megasr.semantics.clip import encode_images, encode_texts, load_clip
from megasr.semantics.taggers import ClipTagger, LabelTagger
from megasr.semantics.tags import TaggerConfig, build_tagger, load_vocabulary

SCENES, HELD_OUT = 40, 2**31


def runs_of_words(tag: str) -> set[str]:
    words = tag.split()
    return {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}


def mean_precision(found: list[str], true: list[set[str]]) -> float:
    """Share of an image's tags that are true of it, the mean over images that have any."""
    pairs = [(text.split(", "), known) for text, known in zip(found, true, strict=True) if text]
    return float(np.mean([np.mean([tag in known for tag in tags]) for tags, known in pairs]))


@pytest.fixture(scope="module")
def scenes() -> tuple[torch.Tensor, list[set[str]]]:
    """Held-out scenes, and every phrase that is true of each."""
    every = [render_scene(i, HELD_OUT, 128) for i in range(SCENES)]
    true = [set().union(*(runs_of_words(tag) for tag in scene.tags)) for scene in every]
    return from_uint8(np.stack([scene.hq for scene in every])), true


@pytest.fixture(scope="module")
def tagger() -> ClipTagger:
    built = build_tagger(TaggerConfig(kind="clip", model="tiny"))
    assert isinstance(built, ClipTagger)
    return built


@pytest.fixture(scope="module")
def logits(tagger: ClipTagger, scenes: Any) -> torch.Tensor:
    with torch.no_grad():
        return tagger.logits(scenes[0])


def test_tags_are_true_of_their_own_scene_and_not_of_another(tagger: ClipTagger, scenes: Any) -> None:
    images, true = scenes
    found = tagger(images)
    assert sum(bool(text) for text in found) > SCENES / 2
    own, shuffled = mean_precision(found, true), mean_precision(found, true[1:] + true[:1])
    assert own > 0.35 and own > 5 * shuffled, (own, shuffled)


def test_a_tag_list_does_not_depend_on_the_batch(tagger: ClipTagger, scenes: Any) -> None:
    images = scenes[0][:6]
    assert tagger(images) == [tagger(image[None])[0] for image in images] == tagger(images.flip(0))[::-1]
    assert len(set(tagger(images))) > 1


def test_threshold_and_max_tags_choose(tagger: ClipTagger, logits: torch.Tensor) -> None:
    def tags(threshold: float, max_tags: int) -> list[list[str]]:
        chooser = LabelTagger(tagger.labels, threshold, max_tags, keep_given=True)
        return [text.split(", ") if text else [] for text in chooser.choose(logits)]

    few, many, all_of_them = tags(0.7, 10), tags(0.3, 10), tags(0.0, 1000)
    assert all(short == long[: len(short)] for short, long in zip(few, many, strict=True))
    assert sum(map(len, few)) < sum(map(len, many))
    assert all(len(text) == len(tagger.labels) for text in all_of_them)
    assert [text[:2] for text in many] == tags(0.3, 2)
    probability = dict(zip(tagger.labels, torch.sigmoid(logits[0]).tolist(), strict=True))
    assert [tag for tag in all_of_them[0] if probability[tag] >= 0.3][:10] == many[0]
    assert [probability[tag] for tag in all_of_them[0]] == sorted(probability.values(), reverse=True)


def test_equally_probable_labels_keep_the_order_of_the_vocabulary() -> None:
    chooser = LabelTagger(["c", "a", "b", "d"], 0.5, 3, keep_given=True)
    assert chooser.choose(torch.tensor([[1.0, 1.0, 2.0, 1.0], [-1.0, 40.0, -1.0, 50.0]])) == ["b, c, a", "d, a"]


def test_each_label_may_have_its_own_threshold() -> None:
    chooser = LabelTagger(["a", "b"], torch.tensor([0.6, 0.9]), 3, keep_given=True)
    assert chooser.choose(torch.tensor([[1.0, 2.0], [0.0, 3.0]])) == ["a", "b"]


def test_only_images_without_tags_are_looked_at(tagger: ClipTagger, scenes: Any) -> None:
    images, given = scenes[0][:3], ["what I know", "", "  "]
    found = tagger(images)
    assert tagger(images, given) == ["what I know", *found[1:]]
    own = build_tagger(TaggerConfig(kind="clip", model="tiny", keep_given=False))
    assert own(images, given) == found
    assert tagger(images, ["a", "b", "c"]) == ["a", "b", "c"]


def test_probabilities_are_those_of_the_clip(tagger: ClipTagger, scenes: Any, logits: torch.Tensor) -> None:
    expected = load_clip("tiny").probabilities(scenes[0][:4], load_vocabulary("tiny"))
    torch.testing.assert_close(tagger.probabilities(logits[:4]), expected)


def test_one_pass_gives_tokens_and_logits_and_they_have_gradients(tagger: ClipTagger, scenes: Any) -> None:
    images = scenes[0][:2]
    tokens, logits = tagger.analyse(images)
    assert tokens.shape == (2, 64, 128) and not logits.requires_grad
    torch.testing.assert_close(tagger.features(images), tokens)
    torch.testing.assert_close(tagger.logits(images), logits)
    assert not tagger.train().training
    trained = build_tagger(TaggerConfig(kind="clip", model="tiny"))
    assert isinstance(trained, ClipTagger)
    trained.clip.visual.requires_grad_(True)
    assert trained.train().training
    for result in (trained.features(images), trained.logits(images)):
        trained.zero_grad()
        result.square().mean().backward()
        gradients = [p.grad for p in trained.clip.visual.transformer.parameters() if p.grad is not None]
        assert len(gradients) > 10 and all(g.isfinite().all() for g in gradients)
        assert any(g.abs().max() > 0 for g in gradients)
    assert all(not text for text in trained(torch.zeros(0, 3, 8, 8))) and not trained.embedded.requires_grad


def test_the_phrases_travel_with_the_module_but_not_in_checkpoints(tagger: ClipTagger) -> None:
    assert tagger.embedded.shape == (len(load_vocabulary("tiny")), 64)
    assert "embedded" not in tagger.state_dict()
    torch.testing.assert_close(tagger.embedded.norm(dim=1), torch.ones(len(tagger.embedded)))


def test_building_a_tagger_draws_no_random_numbers(softmax_clip: TaggerConfig) -> None:
    before = torch.get_rng_state()
    build_tagger(softmax_clip)
    build_tagger(TaggerConfig(kind="clip", model="tiny"))
    assert torch.equal(before, torch.get_rng_state())


NAME = "tagger-test-clip"
SIZES = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def softmax_clip(tmp_path_factory: pytest.TempPathFactory) -> TaggerConfig:
    """A random CLIP without a bias, in the format of open_clip's checkpoints, known to open_clip by its name."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{NAME}.json").write_text(json.dumps(SIZES))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(open_clip.create_model(NAME).state_dict(), folder / "weights.pt")
    (folder / "words.txt").write_text("cat\ndog\nhouse\ntree\n")
    return TaggerConfig(
        kind="clip", model=NAME, weights=str(folder / "weights.pt"), vocabulary=str(folder / "words.txt")
    )


def changed(config: TaggerConfig, **values: Any) -> Any:
    from dataclasses import replace

    return build_tagger(replace(config, **values))


def test_without_a_sigmoid_head_phrases_are_compared_with_the_most_probable(softmax_clip: TaggerConfig) -> None:
    tagger = build_tagger(softmax_clip)
    assert isinstance(tagger, ClipTagger) and not tagger.is_sigmoid
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = encode_images(tagger.clip, images)
        text = encode_texts(tagger.clip, [f"a photo of {word}" for word in ("cat", "dog", "house", "tree")])
        softmax = (image @ text.T * tagger.clip.logit_scale.exp()).softmax(1)
        relative = tagger.probabilities(tagger.logits(images))
    torch.testing.assert_close(relative, softmax / softmax.amax(1, keepdim=True))
    assert 0 < relative.min() < relative.max() == 1
    ranking = softmax.argsort(1, descending=True).tolist()
    middle = float(relative[0].sort(descending=True).values[1:3].mean())
    first = ", ".join(tagger.labels[i] for i in ranking[0][:2])
    assert changed(softmax_clip, threshold=middle)(images)[0] == first
    assert changed(softmax_clip, threshold=1.0)(images) == [tagger.labels[row[0]] for row in ranking]


def test_the_template_is_what_is_read(softmax_clip: TaggerConfig) -> None:
    photo, bare = build_tagger(softmax_clip), changed(softmax_clip, template="{}")
    same = changed(softmax_clip, template="a photo of {}")
    assert isinstance(photo, ClipTagger) and torch.equal(photo.embedded, same.embedded)
    assert not torch.allclose(photo.embedded, bare.embedded)
    torch.testing.assert_close(bare.embedded, encode_texts(bare.clip, ["cat", "dog", "house", "tree"]))


def test_a_folder_without_a_bias_is_compared_as_well(tmp_path: Path, softmax_clip: TaggerConfig) -> None:
    from safetensors.torch import save_file

    state = torch.load(softmax_clip.weights)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIZES}))
    tagger = build_tagger(TaggerConfig(kind="clip", model=str(tmp_path), vocabulary=softmax_clip.vocabulary))
    assert isinstance(tagger, ClipTagger) and not tagger.is_sigmoid
    torch.testing.assert_close(tagger.embedded, build_tagger(softmax_clip).embedded)


def test_more_texts_than_are_read_at_once_are_all_read(tagger: ClipTagger) -> None:
    words = list(tagger.labels)
    assert len(words) > 2 * 64
    torch.testing.assert_close(tagger.embedded, encode_texts(tagger.clip, words).detach(), atol=1e-5, rtol=1e-4)
