"""RAM from a small random checkpoint in the public format, beside a plain computation from the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError, UsageError
from megasr.semantics.taggers import Ram, RamTagger, load_ram, save_ram, swin_sizes
from megasr.semantics.tags import TaggerConfig, build_tagger
from tests.helpers.ram_checkpoints import (
    CONTEXT,
    HEADS,
    HIDDEN,
    LABELS,
    SIZE_PX,
    SWIN_LARGE,
    WIDTH,
    WIDTHS,
    WINDOW,
    State,
    drawn,
    encoder_shapes,
    head_shapes,
    plain_features,
    plain_logits,
)


@pytest.fixture(scope="module")
def state() -> State:
    """What RAM computes tags with."""
    shapes = encoder_shapes(WIDTHS, HEADS, (2, 2), WINDOW)
    return drawn(shapes | head_shapes(WIDTHS[-1], len(LABELS), CONTEXT, WIDTH, HIDDEN), 4)


@pytest.fixture(scope="module")
def lora() -> State:
    """A low-rank update as loralib writes it (r = 8): query and value of Swin, query and key of the heads of BERT."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, width in enumerate(WIDTHS):
        for block in range(2):
            at = f"visual_encoder.layers.{stage}.blocks.{block}.attn.qkv."
            shapes |= {f"{at}lora_A": (16, width), f"{at}lora_B": (2 * width, 8)}
    for tower, name in [(t, n) for t in ("tagging_head", "tag_encoder") for n in ("query", "key")]:
        for layer in range(2):
            at = f"{tower}.encoder.layer.{layer}.crossattention.self.{name}."
            shapes |= {f"{at}lora_A": (8, WIDTH if name == "query" else CONTEXT), f"{at}lora_B": (WIDTH, 8)}
    return drawn(shapes, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, state: State, lora: State) -> dict[str, str]:
    """The four files that are published, with all that is not read."""
    folder = tmp_path_factory.mktemp("ram")
    more = {
        "visual_encoder.layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
        "visual_encoder.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "tag_encoder.embeddings.word_embeddings.weight": torch.zeros(3, WIDTH),
        "text_decoder.bert.encoder.layer.0.output.dense.bias": torch.zeros(WIDTH),
    }
    torch.save({"model": state | more, "optimizer": {"state": {}}, "config": {"a": 1}, "epoch": 4}, folder / "ram.pth")
    torch.save(lora, folder / "DAPE.pth")
    (folder / "ram_tag_list.txt").write_text("\n".join(LABELS))
    (folder / "ram_tag_list_threshold.txt").write_text("\n".join(["0.65", "0.9", "0.5", "0.1", "0.65", "0.7"]))
    return {
        "weights": str(folder / "ram.pth"),
        "lora": str(folder / "DAPE.pth"),
        "labels": str(folder / "ram_tag_list.txt"),
        "label_thresholds": str(folder / "ram_tag_list_threshold.txt"),
    }


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("tuned", [False, True])
def test_representation_and_logits_are_those_of_the_plain_computation(
    tuned: bool, state: State, lora: State, files: dict[str, str], images: torch.Tensor
) -> None:
    ram = load_ram(Path(files["weights"]), Path(files["lora"]) if tuned else None)
    whole = state | lora if tuned else state
    expected = torch.stack([plain_features(whole, image) for image in images])
    features = ram.features(images)
    assert features.shape == (3, 17, CONTEXT)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    logits = torch.stack([plain_logits(whole, one) for one in expected])
    torch.testing.assert_close(ram.logits(features), logits, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1 and (logits[0] - logits[1]).abs().max() > 1e-3


def test_the_update_changes_what_is_seen(files: dict[str, str], images: torch.Tensor) -> None:
    plain, tuned = load_ram(Path(files["weights"])), load_ram(Path(files["weights"]), Path(files["lora"]))
    assert (plain.features(images) - tuned.features(images)).abs().max() > 0.01


def test_images_of_any_size_are_resized(files: dict[str, str]) -> None:
    ram = load_ram(Path(files["weights"]))
    image = torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(3))
    small = F.interpolate(image, (SIZE_PX, SIZE_PX), mode="bilinear", antialias=True)
    torch.testing.assert_close(ram.features(image), ram.features(small))


def test_tags_are_the_labels_above_their_thresholds(files: dict[str, str], images: torch.Tensor) -> None:
    config = TaggerConfig(kind="ram", **files)
    tagger = build_tagger(config)
    assert isinstance(tagger, RamTagger) and not tagger.train().training
    probability = torch.sigmoid(tagger.logits(images))
    limits = torch.tensor([0.65, 0.9, 0.5, 0.1, 0.65, 0.7])
    expected = [
        ", ".join(LABELS[i] for i in row.argsort(descending=True).tolist() if row[i] > limits[i]) for row in probability
    ]
    assert tagger(images) == expected and any(expected)
    assert tagger(images) == [tagger(image[None])[0] for image in images]
    whole = {name: value for name, value in files.items() if name != "label_thresholds"}
    one_for_all = build_tagger(TaggerConfig(kind="ram", **whole))
    assert isinstance(one_for_all, RamTagger)
    above = [{label for label, p in zip(LABELS, row, strict=True) if p > 0.68} for row in probability]
    assert [set(text.split(", ")) for text in one_for_all(images)] == above
    assert above[0] != set(expected[0].split(", "))


def test_representation_and_logits_have_gradients_when_unfrozen(files: dict[str, str], images: torch.Tensor) -> None:
    tagger = build_tagger(TaggerConfig(kind="ram", **files))
    assert isinstance(tagger, RamTagger)
    features, logits = tagger.analyse(images)
    assert not features.requires_grad and not logits.requires_grad
    tagger.ram.requires_grad_(True)
    features, logits = tagger.analyse(images)
    torch.testing.assert_close(tagger.features(images), features)
    (features.square().mean() + logits.square().mean()).backward()
    gradients = {name: p.grad for name, p in tagger.ram.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


def test_what_is_written_is_read_again_as_the_same(tmp_path: Path, files: dict[str, str], state: State) -> None:
    ram = load_ram(Path(files["weights"]))
    save_ram(ram, tmp_path / "new" / "ram.pth")
    written = torch.load(tmp_path / "new" / "ram.pth", weights_only=True)["model"]
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)


def test_the_public_checkpoint_has_the_sizes_of_swin_large() -> None:
    shapes = encoder_shapes(**SWIN_LARGE) | head_shapes(1536, 4585, 512, 768, 3072)
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        ram = Ram(state)
    assert swin_sizes(state)["img_size"] == ram.size_px == 384
    names = {name.replace("layers.3.down", "layers.2.down") for name in ram.state_dict()}
    assert len(ram.state_dict()) == len(shapes) and "visual_encoder.layers.2.downsample.norm.bias" in names
    assert sum(p.numel() for p in ram.parameters()) == sum(value.numel() for value in state.values())


def test_files_that_are_not_ram_are_one_clear_error(tmp_path: Path, state: State, lora: State, files: Any) -> None:
    def refuse(content: Any, message: str, update: Any = None) -> None:
        torch.save(content, tmp_path / "x.pth")
        if update is not None:
            torch.save(update, tmp_path / "y.pth")
        with pytest.raises(MegaSRError, match=message) as error:
            load_ram(tmp_path / "x.pth", None if update is None else tmp_path / "y.pth")
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)

    refuse({}, "not a checkpoint of RAM")
    refuse([1], "not a checkpoint of RAM")
    refuse({k: v for k, v in state.items() if k != "fc.bias"}, "lacks 'fc.bias'")
    refuse(state | {"wordvec_proj.weight": torch.zeros(WIDTH, 3)}, "size mismatch for wordvec_proj.weight")
    refuse(state | {"reweight_scale": torch.zeros(())}, "this is RAM\\+\\+")
    refuse(
        state,
        "no update of the RAM that weights name: tagging_head",
        {k: v for k, v in lora.items() if "tagging" not in k},
    )
    extra = "visual_encoder.layers.9.blocks.0.attn.qkv.lora_A"
    refuse(
        state, "no update of the RAM that weights name: visual_encoder.layers.9", lora | {extra: torch.zeros(16, 16)}
    )
    name = "visual_encoder.layers.0.blocks.0.attn.qkv.lora_B"
    refuse(state, "layers.0.blocks.0.attn.qkv.weight does not fit", lora | {name: torch.zeros(30, 8)})
    refuse(state, "layers.0.blocks.0.attn.qkv.weight does not fit", {k: v for k, v in lora.items() if k != name})
    with pytest.raises(MegaSRError, match="there is no such file"):
        load_ram(tmp_path / "absent.pth")
    (tmp_path / "x.pth").write_bytes(Path(files["weights"]).read_bytes()[:5000])
    with pytest.raises(MegaSRError, match="cannot be read as plain tensors"):
        load_ram(tmp_path / "x.pth")


def test_labels_must_be_those_of_the_weights(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "list.txt").write_text("cat\ndog\n")
    plain = {"kind": "ram", "weights": files["weights"]}
    with pytest.raises(MegaSRError, match=r"list.txt: 2 labels, but .*ram.pth knows 6"):
        build_tagger(TaggerConfig(**plain, labels=str(tmp_path / "list.txt")))
    (tmp_path / "limits.txt").write_text("0.5\n0.5\n")
    with pytest.raises(UsageError, match="2 lines of thresholds for 6 labels"):
        build_tagger(TaggerConfig(**plain, labels=files["labels"], label_thresholds=str(tmp_path / "limits.txt")))
    with pytest.raises(MegaSRError, match="absent.txt cannot be read: No such file"):
        build_tagger(TaggerConfig(**plain, labels=str(tmp_path / "absent.txt")))


def test_loading_draws_no_random_numbers(files: dict[str, str]) -> None:
    before = torch.get_rng_state()
    load_ram(Path(files["weights"]), Path(files["lora"]))
    assert torch.equal(before, torch.get_rng_state())
