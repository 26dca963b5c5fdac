"""Nodes of the trees in a store, by their ids: msgpack arrays of a level and its items. Those used
last are kept in memory."""

from abc import ABC, abstractmethod
from typing import Any

import msgpack

from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.packs import StoreDamagedError

_LEVELS_MAX = 64


class KeptNodes(ABC):
    """Nodes of one kind of tree, at most *kept_max* of which are kept."""

    def __init__(self, blocks: BlockReader, kept_max: int) -> None:
        self.blocks = blocks
        self._kept: dict[bytes, tuple[int, list[Any]]] = {}
        self._kept_max = kept_max

    def read(self, id_: bytes) -> tuple[int, list[Any]]:
        """Returns level and items of node *id_*. Raises StoreDamagedError, StoreError."""
        found = self._kept.pop(id_, None)
        if found is None:
            found = self._decode(id_)
            if len(self._kept) >= self._kept_max:
                del self._kept[next(iter(self._kept))]
        self._kept[id_] = found
        return found

    def _decode(self, id_: bytes) -> tuple[int, list[Any]]:
        try:
            level, items = msgpack.unpackb(self.blocks.read(id_), use_list=False)
            fits = type(level) is int and 0 <= level < _LEVELS_MAX and isinstance(items, tuple)
            fits = fits and self._can_be(level, items)
        except (ValueError, TypeError, IndexError):
            fits = False
        if not fits:
            raise StoreDamagedError(self.blocks.store.where, f"{id_.hex()} is no node")
        return level, list(items)

    @abstractmethod
    def _can_be(self, level: int, items: Any) -> bool:
        """Returns True if a node at *level* can have *items*, as they were decoded. Raises
        ValueError, TypeError, IndexError for what is none."""
