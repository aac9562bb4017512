"""A diffusers folder with the layout of Stable Diffusion 3.5, but narrow, and random weights that are not zero."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

VOCABULARY = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"]
WIDTH = 64  # of the T5, and more than both CLIPs together


def write_sd3_prior(folder: Path, t5: bool = True, **transformer: Any) -> Path:
    """f = 4, patches of 2, three blocks of which the first has dual attention; as diffusers' pipeline saves it."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    folder.mkdir(parents=True, exist_ok=True)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes = {
        "sample_size": 16, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 3,
        "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": WIDTH,
        "pooled_projection_dim": 40, "pos_embed_max_size": 24, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8,) * 3, norm_num_groups=4, latent_channels=16, scaling_factor=1.5305,
            shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False, **blocks,
        )  # fmt: skip
        parts = {
            "transformer": SD3Transformer2DModel(**{**sizes, **transformer}),
            "text_encoder": small_clip(16, 16), "text_encoder_2": small_clip(24, 24),
            "text_encoder_3": _t5() if t5 else None,
        }  # fmt: skip
    tokenizers = {name: small_clip_tokenizer(folder) for name in ("tokenizer", "tokenizer_2")}
    tokenizers["tokenizer_3"] = _t5_tokenizer(folder) if t5 else None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    StableDiffusion3Pipeline(vae=vae, scheduler=scheduler, **parts, **tokenizers).save_pretrained(folder / "prior")
    return folder / "prior"


@functools.cache
def sd3_folder(t5: bool = True) -> str:
    """The folder of such a prior, written once per process."""
    return str(write_sd3_prior(Path(tempfile.mkdtemp(prefix="megasr-sd3-")), t5))


def small_clip(width: int, pooled: int | None) -> Any:
    """A CLIPTextModelWithProjection of VOCABULARY; without pooled a CLIPTextModel."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=pooled or width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config) if pooled is None else CLIPTextModelWithProjection(config)


def small_clip_tokenizer(folder: Path) -> Any:
    """CLIPTokenizer of VOCABULARY, whose files are written to the folder."""
    from transformers import CLIPTokenizer

    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"vocab_size": 8, "d_model": WIDTH, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(**sizes))


def _t5_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import T5TokenizerFast

    made = folder / "t5"
    made.mkdir(exist_ok=True)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581b", -1.0)]
    Tokenizer(models.Unigram(pieces, 2)).save(str(made / "tokenizer.json"))
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5TokenizerFast", "extra_ids": 0}))
    return T5TokenizerFast.from_pretrained(made, local_files_only=True)
