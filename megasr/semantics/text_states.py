"""Text states that are computed once: a folder of them stands in for a prior's text encoder.

A folder holds states.npy (N, l, d) and, for SDXL and SD 3, pooled.npy (N, P), both float16; prompts.json in the order
of their rows; encoder.json, what a fingerprint reads of the encoder's weights; and card.json. The zeros that SD 3 has
in the place of an absent T5 are not stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

from megasr.errors import MegaSRError, UsageError
from megasr.files import identify_folder, write_whole_folder
from megasr.provenance import digest_samples, weight_samples
from megasr.semantics.text import Text, TextEncoder, TextStates, load_text_encoder, read_zeros_for_empty
from megasr.weights.local import find_prior

_FORMAT = "megasr-text-states-1"
_CARD, _PROMPTS, _WEIGHTS = "card.json", "prompts.json", "encoder.json"
_ARRAYS = ("states.npy", "pooled.npy")
_COPIED = 256  # rows of an earlier folder that are copied at a time


class StoredText:
    """The text states in a folder, by prompt. All processes that open it share one memory map.

    Args:
        folder: that add_text_states has written.

    Raises:
        MegaSRError: there is none, or a file is missing, damaged or does not fit the others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise MegaSRError(f"{folder}: there are no text states; make them with megasr embed")
        try:
            card, prompts, weights = (json.loads((folder / name).read_text()) for name in (_CARD, _PROMPTS, _WEIGHTS))
            if card["format"] != _FORMAT:
                raise ValueError(f"format is {card['format']!r}, this version reads {_FORMAT!r}")
            self.encoder, self.padding = str(card["encoder"]), tuple(card["padding"])
            self.weights = {name: bytes.fromhex(sample) for name, sample in weights.items()}
            self.rows = {prompt: row for row, prompt in enumerate(prompts)}
            self.arrays = [np.load(folder / name, mmap_mode="r") for name in _ARRAYS[: 1 + card["pooled"]]]
            if any(len(array) != len(self.rows) or array.dtype != np.float16 for array in self.arrays):
                raise ValueError("the numbers of prompts and of states differ")
            if digest_samples(self.weights) != card["weights"]:
                raise ValueError(f"{_WEIGHTS} is not of the encoder that the card names")
        except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
            raise MegaSRError(
                f"the text states in {folder} cannot be read ({error}): make them again with megasr embed"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)  # a copy of the arrays would be read whole

    def row(self, prompt: str, source: str) -> int:
        """Where a prompt lies.

        Args:
            prompt: of any text.
            source: the prior, for the error.

        Raises:
            MegaSRError: it is not among them.
        """
        if prompt not in self.rows:
            raise MegaSRError(
                f"the text states in {self.folder} lack the prompt {prompt!r}: add it with `megasr embed --prior "
                f"{source} --prompts FILE --output {self.folder}`, FILE with a prompt per line, or --config RECIPE "
                "for all that a training asks for"
            )
        return self.rows[prompt]

    def read(self, prompts: Sequence[str], source: str) -> Text:
        """States as they are stored: float16, on the CPU, without padding. Arguments and errors as row's."""
        rows = [self.row(prompt, source) for prompt in prompts]
        tensors = [torch.from_numpy(np.asarray(array[rows])) for array in self.arrays]
        return tensors[0] if len(tensors) == 1 else TextStates(*tensors)


class StoredTextEncoder(TextEncoder):
    """Looks prompts up; it has no weights. States come in the dtype and on the device that the module is moved to.

    Args:
        stored: the states; anything with StoredText's `read`, `padding` and `weights`.
        source: the prior, for errors.
    """

    def __init__(self, stored: Any, source: str) -> None:
        super().__init__()
        self.stored, self.source = stored, source
        self.absent_weights = stored.weights
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    @property
    def device(self) -> torch.device:
        return self._like.device

    def tokenise(self, prompts: Sequence[str]) -> Text:
        """What is stored of the prompts."""
        return self.stored.read(prompts, self.source)

    def embed(self, tokens: Text) -> Text:
        text = tree_map(lambda values: values.to(self._like.dtype), tokens)
        rows, columns = self.stored.padding
        if isinstance(text, TextStates):
            return text._replace(states=F.pad(text.states, (0, columns, 0, rows)))
        return F.pad(text, (0, columns, 0, rows))


def identify_text_encoder(prior_folder: Path) -> str:
    """12 hexadecimal digits over the beginnings of the files that text states depend on; nothing is loaded."""
    patterns = ("text_encoder*", "tokenizer*")
    parts = sorted(part for pattern in patterns for part in prior_folder.glob(pattern) if part.is_dir())
    named = [(part.name, identify_folder(part)) for part in parts]
    return hashlib.sha256(json.dumps([named, read_zeros_for_empty(prior_folder)]).encode()).hexdigest()[:12]


def load_stored_text(folder: str, prior_folder: Path, source: str) -> StoredTextEncoder:
    """The text states in a folder in place of the text encoder of a prior.

    Args:
        folder: of the text states.
        prior_folder: where the prior lies.
        source: how it was named.

    Raises:
        UsageError: they were made by another text encoder.
        MegaSRError: they cannot be read.
    """
    stored = StoredText(Path(folder))
    _check_encoder(stored, prior_folder, source)
    return StoredTextEncoder(stored, source)


def _check_encoder(stored: StoredText, prior_folder: Path, source: str) -> None:
    if (found := identify_text_encoder(prior_folder)) != stored.encoder:
        raise UsageError(
            f"the text_states in {stored.folder} were made by another text encoder than that of the prior {source} "
            f"({stored.encoder}, not {found}): make others in another folder, with megasr embed --prior {source}"
        )


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or would be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


@torch.no_grad()
def add_text_states(
    folder: Path,
    source: str,
    prompts: Iterable[str],
    batch_size: int = 16,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the states of prompts to a folder, or add them to those that it has. It changes whole or not at all.

    Args:
        folder: a new one, or one of this text encoder.
        source: the prior, of which the text encoder alone is loaded.
        prompts: any number of times each.
        batch_size: prompts that are encoded at a time.
        device: where.
        say: takes one line on what will be done, before it is begun.
        progress: takes the number of prompts that are encoded, and of all that will be.

    Returns:
        The number of prompts that were added.

    Raises:
        UsageError: the folder holds something else, or states of another text encoder.
        MegaSRError: the prior is missing or broken, the disk is too small, or a state does not fit float16.
    """
    prior_folder, stored = find_prior(source), None
    if (folder / _CARD).is_file():
        stored = StoredText(folder)
        _check_encoder(stored, prior_folder, source)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something else: name another folder")
    known: Mapping[str, int] = {} if stored is None else stored.rows
    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if not new:
        say(f"{folder} has all of these prompts, and {len(known):,} in all")
        return 0
    encoder = load_text_encoder(prior_folder).requires_grad_(False).eval()
    samples = weight_samples(encoder)
    encoder.to(device)
    shapes = [tuple(values.shape[1:]) for values in tree_leaves(_stored_part(encoder, new[:1]))]
    count, each = len(known) + len(new), 2 * sum(map(math.prod, shapes))
    space = (
        f"{count:,} prompts take {_gigabytes(count * each)}, on the disk of {folder} {_gigabytes(free_bytes(folder))}"
    )
    if count * each > free_bytes(folder):
        raise MegaSRError(f"{space} are free: name a folder on a larger one, or fewer prompts")
    say(f"{space} are free; {len(new):,} are to be encoded, {each / 1e6:.3g} MB each")
    card = {
        "format": _FORMAT, "encoder": identify_text_encoder(prior_folder), "weights": digest_samples(samples),
        "prompts": count, "padding": encoder.padding, "pooled": len(shapes) > 1,
    }  # fmt: skip
    batches = [new[begin : begin + batch_size] for begin in range(0, len(new), batch_size)]
    with write_whole_folder(folder) as written:
        _write_arrays(written, stored, encoder, batches, [(count, *shape) for shape in shapes], progress)
        (written / _PROMPTS).write_text(json.dumps([*known, *new]))
        (written / _WEIGHTS).write_text(json.dumps({name: sample.hex() for name, sample in samples.items()}))
        (written / _CARD).write_text(json.dumps(card, indent=2) + "\n")
    return len(new)


def _write_arrays(
    folder: Path,
    stored: StoredText | None,
    encoder: TextEncoder,
    batches: Sequence[Sequence[str]],
    shapes: Sequence[tuple[int, ...]],
    progress: Callable[[int, int], None],
) -> None:
    """The rows of earlier states, then those of new prompts; by a memory map a full disk would end the process."""
    done, total = 0, sum(map(len, batches))
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name, _ in zip(_ARRAYS, shapes, strict=False)]
        for number, (file, shape) in enumerate(zip(files, shapes, strict=True)):
            header: Any = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            before = np.empty(0) if stored is None else stored.arrays[number]
            for begin in range(0, len(before), _COPIED):
                file.write(before[begin : begin + _COPIED].tobytes())
        for batch in batches:
            for file, values in zip(files, tree_leaves(_stored_part(encoder, batch)), strict=True):
                file.write(_to_float16(values, batch).tobytes())
            done += len(batch)
            progress(done, total)


def _to_float16(values: torch.Tensor, prompts: Sequence[str]) -> np.ndarray:
    halved = values.half()
    finite = torch.isfinite(halved).flatten(1).all(1).tolist()
    if not all(finite):
        raise MegaSRError(
            f"the states of {prompts[finite.index(False)]!r} are not finite, or too large for float16: this text "
            "encoder cannot be replaced"
        )
    return halved.cpu().numpy()


def _stored_part(encoder: TextEncoder, prompts: Sequence[str]) -> Text:
    """States without the zeros at their end that every prompt has."""
    text, (rows, columns) = encoder(prompts), encoder.padding
    states = text.states if isinstance(text, TextStates) else text
    states = states[:, : states.shape[1] - rows, : states.shape[2] - columns]
    return text._replace(states=states) if isinstance(text, TextStates) else states


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
