"""Checkpoints that are written while the training goes on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.io import AsyncCheckpointIO

from megasr.training.last_checkpoint import CheckpointFiles


class AsyncCheckpointFiles(AsyncCheckpointIO):
    """Copies what a checkpoint holds and writes it in a thread, as CheckpointFiles writes it: whole or not at all.

    The end of a training, whether by an error or a signal, waits for the file. One is written at a time: whoever is
    faster than the disk waits, so there is one copy at most. What a failed write has to say comes with the next one, or
    at the end.
    """

    def __init__(self) -> None:
        super().__init__(CheckpointFiles())

    def teardown(self) -> None:
        """Wait for the file that is being written. Raises what the write has raised, once."""
        try:
            super().teardown()
        finally:
            self._error = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Copy, and begin to write. Raises what the write before has raised."""
        self.teardown()
        super().save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, *settings: Any, **named: Any) -> dict[str, Any]:
        """A checkpoint with tensors on the CPU; waits for the one that is being written."""
        self.teardown()
        found: dict[str, Any] = super().load_checkpoint(path, *settings, **named)
        return found

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint; waits for the one that is being written."""
        self.teardown()
        super().remove_checkpoint(path)
