"""Files that a command writes to its standard output: S3 and GCS through their own clients.

    pipe:aws s3 cp s3://bucket/shards/{name} -
    pipe:gcloud storage cat gs://bucket/shards/{name}
    pipe:gsutil cat -r {start}-{end} gs://bucket/shards/{name}

Words are split as a shell would, but no shell runs: for one, write `pipe:sh -c "..."`. There is no time limit: where a
client can hang, write `timeout 600` before it.

The command is whatever the recipe says: it is shown before it first runs, and with MEGASR_NO_PIPE=1 none is run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from typing import IO, Any, BinaryIO

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from data_pipelines.shards.file_cache import FileCache
from data_pipelines.shards.local_storage import ShortReadError
from data_pipelines.shards.remote_storage import RemoteStorage
from megasr.errors import MegaSRError, UsageError

WAITS_S = (0.0, 0.5, 2.0)  # before each try
FORBIDDEN = "MEGASR_NO_PIPE"
_LAST_BYTE = 2**40  # clients cut a range at the end of the file, as HTTP does
_PLAIN = re.compile(r"[A-Za-z0-9_.@%+=:,/-]+")  # what no shell and no other language acts on
_SCRIPT = re.compile(r"""[\s;&|<>()$`'"\\]""")  # in a word that a shell or another language reads
_REMOTE_SHELLS = ("ssh", "rsh")  # they give all of their words to a shell
_shown: set[str] = set()  # forked workers have it, too


def show_command(template: str) -> None:
    """Say once on the console, whatever the number of processes, which command is about to run.

    Raises:
        UsageError: commands are forbidden.
    """
    _check_allowed(template)
    if template not in _shown:
        _shown.add(template)
        rank_zero_info(f"running the command of pipe:{template} ({FORBIDDEN}=1 forbids it)")


def _check_allowed(template: str) -> None:
    if os.environ.get(FORBIDDEN, "") not in ("", "0"):
        raise UsageError(f"pipe:{template}: {FORBIDDEN} is set, so no command is run; unset it to allow it")


class PipeStorage(RemoteStorage):
    """Files by name through a command.

    Args:
        template: the command, with {name} and, where it can read ranges, {start} and {end} (the first and last byte).
        cache: of whole files, for commands without ranges.

    Raises:
        UsageError: commands are forbidden, {name} is missing, one of {start} and {end} is missing, or the quotes do not
            match.
    """

    def __init__(self, template: str, cache: FileCache) -> None:
        _check_allowed(template)
        self.template = template
        self.cache = cache
        try:
            self.words = shlex.split(template)
        except ValueError as error:
            raise UsageError(f"pipe:{template}: {error}") from error
        given = {place for place in ("{name}", "{start}", "{end}") if any(place in word for word in self.words)}
        if "{name}" not in given:
            raise UsageError(f"pipe:{template}: the command must contain {{name}}, the place of the file's name")
        if len(given) == 2:
            raise UsageError(f"pipe:{template}: {{start}} and {{end}} go together")
        self.has_ranges = len(given) == 3

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.template, self.cache)

    def read(self, name: str, offset: int, size: int, version: str = "", file_bytes: int | None = None) -> bytes:
        """See Storage.read."""
        if not self.has_ranges:
            return self.cache.read(name, offset, size, version, file_bytes, lambda file: self._fetch(name, file))
        content = self._run(name, offset, offset + size - 1) if size else b""
        if len(content) > size:
            raise MegaSRError(f"pipe:{self.template}: {name}: {len(content)} bytes came for a range of {size}")
        if len(content) < size:
            raise ShortReadError(f"{name}: ends at byte {offset + len(content)}, wanted {size} bytes from {offset}")
        return content

    def read_all(self, name: str, version: str = "") -> bytes:
        """See Storage.read_all."""
        if version and not self.has_ranges:
            return self.cache.read_all(name, version, lambda file: self._fetch(name, file))
        return self._run(name)

    def _fetch(self, name: str, file: BinaryIO) -> None:
        self._run(name, into=file)

    def _run(self, name: str, start: int = 0, end: int = _LAST_BYTE, into: IO[bytes] | None = None) -> bytes:
        self._check_name(name)
        values = {"{name}": name, "{start}": str(start), "{end}": str(end)}
        words = [_fill(word, values) for word in self.words]
        trouble = ""
        show_command(self.template)
        for wait_s in WAITS_S:
            time.sleep(wait_s)
            if into is not None:
                into.seek(0)
                into.truncate()
            try:
                done = subprocess.run(
                    words, stdin=subprocess.DEVNULL, stdout=into or subprocess.PIPE, stderr=subprocess.PIPE
                )
            except OSError as error:
                raise MegaSRError(f"pipe:{self.template}: cannot run {words[0]}: {error.strerror or error}") from error
            if done.returncode == 0:
                return done.stdout or b""
            said = done.stderr.decode(errors="replace").strip().splitlines()
            trouble = f"exit status {done.returncode}, {said[-1] if said else 'no message'}"
        raise MegaSRError(f"pipe:{self.template}: {name}: {trouble}, tried {len(WAITS_S)} times")

    def _check_name(self, name: str) -> None:
        """Names come from the manifest of the set. Inside a word that a shell reads, or as an option, they could act.

        Raises:
            MegaSRError: this one could.
        """
        remote = any(os.path.basename(word) in _REMOTE_SHELLS for word in self.words)
        for word in self.words:
            in_script = "{name}" in word and (remote or _SCRIPT.search(word))
            if (in_script and not _PLAIN.fullmatch(name)) or (word.startswith("{name}") and name.startswith("-")):
                raise MegaSRError(
                    f"pipe:{self.template}: the set names a file {name!r}, which the command could take for a part of "
                    "itself; pass {name} as a word of its own, or rename the file"
                )


def _fill(word: str, values: dict[str, str]) -> str:
    for place, value in values.items():
        word = word.replace(place, value)
    return word
