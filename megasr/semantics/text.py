"""Text encoders of a prior folder: SD 2.x's transformers CLIPTextModel, the tiny prior's open_clip TextTransformer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megasr.configs import read_config
from megasr.files import read_safetensors
from megasr.semantics.clip import find_clip, load_open_clip, load_tokenizer, save_merges


class TextEncoder(nn.Module):
    """Prompts -> (B, L, D) embeddings. L is the context length of the encoder, D its width."""

    def tokenise(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts -> (B, L) token ids, truncated and padded to the context length."""
        raise NotImplementedError

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L) token ids -> (B, L, D) embeddings."""
        raise NotImplementedError

    def forward(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embed prompts; a prompt that occurs twice in the batch (the empty one, mostly) is encoded once."""
        unique = list(dict.fromkeys(prompts))
        device = next(self.parameters()).device
        embeddings = self.embed(self.tokenise(unique).to(device))
        return embeddings[[unique.index(prompt) for prompt in prompts]]


class OpenClipTextEncoder(TextEncoder):
    """open_clip's TextTransformer without pooling: every token's embedding after the last norm.

    Args:
        context_length: L.
        width: D.
        heads: attention heads.
        layers: of the transformer.
        folder: where the merges of its vocabulary are; None is open_clip's whole vocabulary.
    """

    def __init__(self, context_length: int, width: int, heads: int, layers: int, folder: Path | None = None) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.config = {"context_length": context_length, "width": width, "heads": heads, "layers": layers}
        self.width = width
        self.tokenizer = load_tokenizer(folder, context_length)
        self.tower = TextTransformer(
            vocab_size=self.tokenizer.vocab_size, pool_type="none", proj_type="none", output_dim=None, **self.config
        )

    @classmethod
    def from_clip(cls, source: str) -> OpenClipTextEncoder:
        """The text tower of a CLIP (see megasr.semantics.clip.load_clip)."""
        model = load_open_clip(source)
        config = model.config["text_cfg"]
        sizes = {name: config[name] for name in ("context_length", "width", "heads", "layers")}
        encoder = cls(**sizes, folder=find_clip(source))
        own = encoder.tower.state_dict()
        encoder.tower.load_state_dict({name: value for name, value in model.state_dict().items() if name in own})
        return encoder

    def tokenise(self, prompts: Sequence[str]) -> torch.Tensor:
        return self.tokenizer(list(prompts))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.tower(tokens)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors (fp16)."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": "TextTransformer", "_library": "open_clip", **self.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_merges(self.tokenizer, folder)
        save_file({k: v.half().contiguous() for k, v in self.tower.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> OpenClipTextEncoder:
        """Read what `save` wrote."""
        config = read_config(folder / "config.json")
        encoder = cls(**{k: v for k, v in config.items() if not k.startswith("_")}, folder=folder)
        encoder.tower.load_state_dict(read_safetensors(folder / "model.safetensors"))
        return encoder


class TransformersTextEncoder(TextEncoder):
    """The CLIPTextModel of Stable Diffusion: last hidden state after the final norm."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def tokenise(self, prompts: Sequence[str]) -> torch.Tensor:
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens).last_hidden_state

    @classmethod
    def load(cls, folder: Path) -> TransformersTextEncoder:
        """Read `text_encoder/` and `tokenizer/` of a diffusers folder."""
        from transformers import CLIPTextModel, CLIPTokenizer

        read_config(folder / "text_encoder" / "config.json")  # it must not lead elsewhere
        model = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        return cls(model, CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True))


def load_text_encoder(prior_folder: Path) -> TextEncoder:
    """The text encoder of a prior folder, of whichever library its model_index.json names."""
    library, _ = json.loads((prior_folder / "model_index.json").read_text())["text_encoder"]
    if library == "open_clip":
        return OpenClipTextEncoder.load(prior_folder / "text_encoder")
    return TransformersTextEncoder.load(prior_folder)
