"""What files that are far away have in common: one question for many parts."""

from __future__ import annotations

from data_pipelines.shards.file_cache import FileCache
from data_pipelines.shards.local_storage import Parts


class RemoteStorage:
    """A storage where asking costs more than copying."""

    cache: FileCache

    def read(self, name: str, offset: int, size: int, version: str = "", file_bytes: int | None = None) -> bytes:
        """See Storage.read."""
        raise NotImplementedError

    def forget(self, name: str, version: str) -> bool:
        """See Storage.forget."""
        return self.cache.forget(name, version)

    def read_parts(self, name: str, parts: Parts, version: str = "", file_bytes: int | None = None) -> list[bytes]:
        """See Storage.read_parts."""
        begin, end = parts[0][0], max(offset + size for offset, size in parts)
        block = self.read(name, begin, end - begin, version, file_bytes)
        return [block[offset - begin : offset - begin + size] for offset, size in parts]
