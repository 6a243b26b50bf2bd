"""What TensorRT-RTX compiles on a card, kept on disk for the next process."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from decipher_rt.caches import cache_folder


class Cache(Protocol):
    """``IRuntimeCache`` of TensorRT-RTX."""

    def deserialize(self, blob: bytes, /) -> bool:
        """Take what an earlier process wrote."""
        ...

    def serialize(self) -> bytes | memoryview:
        """Return it as a buffer."""
        ...


class CachingConfig(Protocol):
    """``IRuntimeConfig`` of TensorRT-RTX; TensorRT's own has neither function, and compiles nothing at loading."""

    dynamic_shapes_kernel_specialization_strategy: Any

    def set_execution_context_allocation_strategy(self, strategy: Any, /) -> None:
        """Say who gives the memory of the contexts."""
        ...

    def create_runtime_cache(self) -> Cache:
        """Make an empty cache."""
        ...

    def set_runtime_cache(self, cache: Cache, /) -> bool:
        """Use a cache for the contexts that are made with this configuration."""
        ...


class RuntimeCache:
    """The cache of one engine, for all its contexts; it keeps their configurations alive with it.

    Parameters
    ----------
    path : Path or None
        From ``cache_file``.

    Attributes
    ----------
    compiled : bool
        Whether the library compiled what the file did not hold; known once it is saved.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._configs: list[CachingConfig] = []
        self._cache: Cache | None = None
        self._read = b""
        self.compiled = False

    def attach(self, config: CachingConfig) -> None:
        """Let a runtime configuration use the cache."""
        self._configs.append(config)
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):  # not there, or not for this account: it is compiled anew
                if self._path is not None and self._cache.deserialize(content := self._path.read_bytes()):
                    self._read = content
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what grew beside its place and rename it; a machine without a writable cache compiles each time."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        self.compiled = len(content) > len(self._read)
        if self._path is None or not self.compiled:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside.write_bytes(content)
            beside.replace(self._path)
        except OSError:
            beside.unlink(missing_ok=True)


def cache_file(plan_sha256: str, library_version: str, driver_version: str, card: str) -> Path | None:
    """Return where the runtime cache of an engine lies; another engine, library, driver or card has another file."""
    key = hashlib.sha256("\n".join((plan_sha256, library_version, driver_version, card)).encode()).hexdigest()
    folder = cache_folder("tensorrt-rtx")
    return folder and folder / f"{key[:32]}.cache"
