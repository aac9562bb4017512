"""Text encoders of a prior: CLIP of SD 2.x, two CLIPs of SDXL, these and T5 of SD 3, open_clip's of the tiny prior."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from megasr.configs import read_config
from megasr.files import read_safetensors
from megasr.semantics.clip import find_clip, load_open_clip, load_tokenizer, save_merges
from megasr.weights.local import is_sdxl


class TextStates(NamedTuple):
    """Text as SDXL and SD 3 read it: states (B, L, D) of all tokens, pooled (B, P) of the whole prompts."""

    states: torch.Tensor
    pooled: torch.Tensor


_KEPT_PROMPTS = 100_000
Text: TypeAlias = torch.Tensor | TextStates  # SD 1.x and 2.x read the (B, L, D) states alone
Tokens = torch.Tensor | list[torch.Tensor]  # (B, L) token ids, of every encoder where there are several


class TextEncoder(nn.Module):
    """Prompts -> (B, L, D) embeddings. L is the context length of the encoder, D its width.

    Attributes:
        absent_weights: see megasr.provenance.weight_samples; of the weights that belong to it and are not loaded.
    """

    absent_weights: Mapping[str, bytes] = {}

    @property
    def device(self) -> torch.device:
        """Where prompts are embedded."""
        return next(self.parameters()).device

    @property
    def padding(self) -> tuple[int, int]:
        """Tokens, and values of every token, at the end of the states that are zero for all prompts."""
        return 0, 0

    def tokenise(self, prompts: Sequence[str]) -> Any:
        """Prompts -> Tokens, truncated and padded to the context length."""
        raise NotImplementedError

    def embed(self, tokens: Any) -> Any:
        """Tokens -> Text."""
        raise NotImplementedError

    def forward(self, prompts: Sequence[str]) -> Any:
        """Embed prompts; a prompt that occurs twice in the batch (the empty one, mostly) is encoded once."""
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        embeddings = self.embed(tree_map(lambda tokens: tokens.to(self.device), self.tokenise(list(rows))))
        chosen = [rows[prompt] for prompt in prompts]
        return tree_map(lambda embedding: embedding[chosen], embeddings)


class OpenClipTextEncoder(TextEncoder):
    """open_clip's TextTransformer: every token's embedding after the last norm.

    Args:
        context_length: L.
        width: D.
        heads: attention heads.
        layers: of the transformer.
        folder: where the merges of its vocabulary are; None is open_clip's whole vocabulary.
        pooled: embed as TextStates, whose pooled text is the embedding of the token that ends the prompt.
    """

    def __init__(
        self,
        context_length: int,
        width: int,
        heads: int,
        layers: int,
        folder: Path | None = None,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        sizes = {"context_length": context_length, "width": width, "heads": heads, "layers": layers}
        self.config = {**sizes, "pooled": True} if pooled else sizes  # priors from before `pooled` keep their identity
        self.width, self.pooled = width, pooled
        self.tokenizer = load_tokenizer(folder, context_length)
        self._tokens: dict[str, torch.Tensor] = {}  # a training asks for the same texts again
        self.tower = TextTransformer(
            vocab_size=self.tokenizer.vocab_size, pool_type="none", proj_type="none", output_dim=None, **sizes
        )

    @classmethod
    def from_clip(cls, source: str, pooled: bool = False) -> OpenClipTextEncoder:
        """The text tower of a CLIP (see megasr.semantics.clip.load_clip)."""
        model = load_open_clip(source)
        config = model.config["text_cfg"]
        sizes = {name: config[name] for name in ("context_length", "width", "heads", "layers")}
        encoder = cls(**sizes, folder=find_clip(source), pooled=pooled)
        own = encoder.tower.state_dict()
        encoder.tower.load_state_dict({name: value for name, value in model.state_dict().items() if name in own})
        return encoder

    def tokenise(self, prompts: Sequence[str]) -> torch.Tensor:
        if new := [prompt for prompt in prompts if prompt not in self._tokens]:
            if len(self._tokens) > _KEPT_PROMPTS:
                self._tokens.clear()
                new = list(prompts)
            self._tokens |= zip(new, self.tokenizer(new), strict=True)
        return torch.stack([self._tokens[prompt] for prompt in prompts])

    def embed(self, tokens: torch.Tensor) -> Text:
        states = self.tower(tokens)
        if not self.pooled:
            return states
        ends = tokens.argmax(1)  # the largest id, as open_clip pools
        return TextStates(states, states[torch.arange(len(states), device=states.device), ends])

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
        return _token_ids(self.tokenizer, prompts, self.tokenizer.model_max_length)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens).last_hidden_state

    @classmethod
    def load(cls, folder: Path) -> TransformersTextEncoder:
        """Read `text_encoder/` and `tokenizer/` of a diffusers folder."""
        from transformers import CLIPTextModel, CLIPTokenizer

        return cls(*_read_encoder(folder, CLIPTextModel, CLIPTokenizer, ""))


class SDXLTextEncoder(TextEncoder):
    """Stable Diffusion XL's two CLIPs (2307.01952): states of their last but one layers side by side.

    Pooled is the projection of the second.

    Args:
        clips: CLIPTextModel and CLIPTextModelWithProjection, with their tokenizers.
        zeros_for_empty: the empty prompt is all zeros, which the prior was trained on without words.
    """

    def __init__(self, clips: Sequence[tuple[nn.Module, Any]], zeros_for_empty: bool) -> None:
        super().__init__()
        self.clips = nn.ModuleList(model for model, _ in clips)
        self.tokenizers = [tokenizer for _, tokenizer in clips]
        self.zeros_for_empty = zeros_for_empty

    def tokenise(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Token ids of both encoders, and whether each prompt has words."""
        ids = [_token_ids(tokenizer, prompts, tokenizer.model_max_length) for tokenizer in self.tokenizers]
        return [*ids, torch.tensor([bool(prompt) or not self.zeros_for_empty for prompt in prompts])]

    def embed(self, tokens: list[torch.Tensor]) -> TextStates:
        *ids, has_words = tokens
        states, pooled = _clip_states(self.clips, ids)
        return TextStates(states * has_words[:, None, None], pooled[-1] * has_words[:, None])

    @classmethod
    def load(cls, folder: Path) -> SDXLTextEncoder:
        """Read a diffusers folder."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        clips = [
            _read_encoder(folder, model, CLIPTokenizer, suffix)
            for model, suffix in ((CLIPTextModel, ""), (CLIPTextModelWithProjection, "_2"))
        ]
        return cls(clips, read_zeros_for_empty(folder))


def read_zeros_for_empty(folder: Path) -> bool:
    """Whether the pipeline in a diffusers folder puts zeros in the place of an absent prompt; SDXL's do by default."""
    index = json.loads((folder / "model_index.json").read_text())
    return bool(index.get("force_zeros_for_empty_prompt", True))


class SD3TextEncoder(TextEncoder):
    """Stable Diffusion 3's text encoders: two CLIPs and, where there is one, a T5.

    The CLIPs' states lie side by side, padded to the T5's width, before the T5's; pooled are the CLIPs' projections.

    Args:
        clips: two CLIPTextModelWithProjection, with their tokenizers.
        t5: T5EncoderModel with its tokenizer; None puts zeros in the place of its states, as diffusers does.
        width: D, of the T5.
    """

    t5_length = 256  # diffusers' max_sequence_length

    def __init__(self, clips: Sequence[tuple[nn.Module, Any]], t5: tuple[nn.Module, Any] | None, width: int) -> None:
        super().__init__()
        self.clips = nn.ModuleList(model for model, _ in clips)
        self.t5 = None if t5 is None else t5[0]
        self.tokenizers = [tokenizer for _, tokenizer in (*clips, *([] if t5 is None else [t5]))]
        self.width = width

    @property
    def padding(self) -> tuple[int, int]:
        if self.t5 is not None:
            return 0, 0
        return self.t5_length, self.width - sum(clip.config.hidden_size for clip in self.clips)

    def tokenise(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        lengths = [self.tokenizers[0].model_max_length] * 2 + [self.t5_length]
        pairs = zip(self.tokenizers, lengths, strict=False)
        return [_token_ids(tokenizer, prompts, length) for tokenizer, length in pairs]

    def embed(self, tokens: list[torch.Tensor]) -> TextStates:
        states, pooled = _clip_states(self.clips, tokens)
        states = F.pad(states, (0, self.width - states.shape[-1]))
        if self.t5 is None:
            last = states.new_zeros(len(states), self.t5_length, self.width)
        else:
            last = self.t5(tokens[2]).last_hidden_state
        return TextStates(torch.cat([states, last], dim=1), torch.cat(pooled, dim=-1))

    @classmethod
    def load(cls, folder: Path) -> SD3TextEncoder:
        """Read a diffusers folder; without `text_encoder_3/` there is no T5."""
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

        clips = [_read_encoder(folder, CLIPTextModelWithProjection, CLIPTokenizer, suffix) for suffix in ("", "_2")]
        has_t5 = (folder / "text_encoder_3").is_dir()
        t5 = _read_encoder(folder, T5EncoderModel, T5TokenizerFast, "_3") if has_t5 else None
        return cls(clips, t5, read_config(folder / "transformer" / "config.json")["joint_attention_dim"])


def _token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> torch.Tensor:
    return tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def _clip_states(clips: nn.ModuleList, ids: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """States of the last but one layers, side by side, and the projections of those CLIPs that have one."""
    seen = [clip(own, output_hidden_states=True) for clip, own in zip(clips, ids, strict=False)]
    pooled = [one.text_embeds for one in seen if "text_embeds" in one]
    return torch.cat([one.hidden_states[-2] for one in seen], dim=-1), pooled


def _read_encoder(folder: Path, model: Any, tokenizer: Any, suffix: str) -> tuple[nn.Module, Any]:
    """A text encoder of a diffusers folder, in float32 whatever it was saved in, with its tokenizer."""
    import transformers

    read_config(folder / f"text_encoder{suffix}" / "config.json")  # it must not lead elsewhere
    transformers.utils.logging.disable_progress_bar()
    return (
        model.from_pretrained(folder / f"text_encoder{suffix}", dtype=torch.float32, local_files_only=True),
        tokenizer.from_pretrained(folder / f"tokenizer{suffix}", local_files_only=True),
    )


def load_text_encoder(prior_folder: Path) -> TextEncoder:
    """The text encoder of a prior folder, of whichever library its model_index.json names."""
    library, _ = json.loads((prior_folder / "model_index.json").read_text())["text_encoder"]
    if library == "open_clip":
        return OpenClipTextEncoder.load(prior_folder / "text_encoder")
    if (prior_folder / "transformer").is_dir():
        return SD3TextEncoder.load(prior_folder)
    if is_sdxl(prior_folder):
        return SDXLTextEncoder.load(prior_folder)
    return TransformersTextEncoder.load(prior_folder)
