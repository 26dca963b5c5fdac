"""Reading small ranges of a far store by large ones, of which the latest are kept.

A tree's nodes and small files' chunks lie in packs by the thousand, mostly near those that are
asked for next; each as a request of its own would cost more time than all their bytes. Objects
never change, so what was read of one stays right; but only of those kinds of objects that are
named is anything kept, for of others it matters whether they are still there."""

import threading
from collections import OrderedDict
from collections.abc import Iterator

from fusejournal.objects.store import ObjectStore

_WINDOW_BYTES = 256 << 10
_WINDOWS_MAX = 128


class WindowedStore:
    """The store *beneath*, of whose objects *kinds* (prefixes) windows are kept: *windows_max* at
    most (32 MiB). May be used by several threads. Raises what *beneath* does."""

    def __init__(
        self, beneath: ObjectStore, kinds: tuple[str, ...], windows_max: int = _WINDOWS_MAX
    ) -> None:
        self.where = beneath.where
        self.uploads = beneath.uploads
        self.traffic = beneath.traffic
        self._beneath = beneath
        self._kinds = kinds
        self._windows_max = windows_max
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[str, int], _Window] = OrderedDict()

    def waiting(self) -> None:
        """Raises what is to end a wait."""
        self._beneath.waiting()

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Implements ObjectStore.put_new."""
        self._beneath.put_new(name, data)

    def get(self, name: str) -> bytes:
        """Implements ObjectStore.get."""
        return self._beneath.get(name)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Implements ObjectStore.get_range."""
        if not name.startswith(self._kinds) or not 0 < length <= _WINDOW_BYTES // 2:
            return self._beneath.get_range(name, start, length)
        first, last = start // _WINDOW_BYTES, (start + length - 1) // _WINDOW_BYTES
        content = b"".join(self._window(name, number) for number in range(first, last + 1))
        offset = start - first * _WINDOW_BYTES
        return content[offset : offset + length]

    def _window(self, name: str, number: int) -> bytes:
        """Returns what is in window *number* of the object; threads that want the same one wait for
        the first."""
        with self._lock:
            window = self._windows.setdefault((name, number), _Window())
            self._windows.move_to_end((name, number))
            if len(self._windows) > self._windows_max:
                self._windows.popitem(last=False)
        with window.lock:
            if window.content is None:
                window.content = self._beneath.get_range(
                    name, number * _WINDOW_BYTES, _WINDOW_BYTES
                )
            return window.content

    def names(self, prefix: str) -> Iterator[str]:
        """Implements ObjectStore.names."""
        return self._beneath.names(prefix)

    def remove(self, name: str) -> None:
        """Implements ObjectStore.remove."""
        with self._lock:
            for key in [key for key in self._windows if key[0] == name]:
                del self._windows[key]
        self._beneath.remove(name)


class _Window:
    """One window: empty until a reader has fetched it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.content: bytes | None = None
