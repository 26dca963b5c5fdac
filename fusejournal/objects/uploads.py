"""Objects on their way to a store, as many at a time as it pays to have (``store.uploads``).

Used by one thread, which is also the one that hears of what was put and of what failed. Threads
that are left behind after an error or an interrupt end with the process."""

import threading
from typing import Generic, TypeVar

from fusejournal.objects.store import ObjectStore, put_same

_T = TypeVar("_T")
_SLICE_SECONDS = 0.2


class _Upload(Generic[_T]):
    """One object on its way."""

    def __init__(self, tag: _T) -> None:
        self.tag = tag
        self.ended = threading.Event()
        self.is_new = False
        self.error: BaseException | None = None


class Uploads(Generic[_T]):
    """Puts objects. Each comes with a tag, which is returned, in order, once it is there."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._under_way: list[_Upload[_T]] = []

    def put(self, name: str, content: bytes | bytearray, tag: _T) -> list[tuple[_T, bool]]:
        """Puts an object, or begins to. *content* must not be changed from now on. Returns what is
        there since the last call, each with True if it was not there before. Raises what put_same
        raises, also for an object of an earlier call."""
        upload = _Upload(tag)
        if self._store.uploads <= 1:
            return [(tag, put_same(self._store, name, content))]

        def put() -> None:
            try:
                upload.is_new = put_same(self._store, name, content)
            except BaseException as error:
                upload.error = error
            finally:
                upload.ended.set()

        done = self._wait(self._store.uploads - 1)
        self._under_way.append(upload)
        threading.Thread(target=put, daemon=True).start()
        return done

    def finish(self) -> list[tuple[_T, bool]]:
        """Waits for all of them. Returns and raises as :meth:`put`."""
        return self._wait(0)

    def _wait(self, count_max: int) -> list[tuple[_T, bool]]:
        """Waits, in order, until no more than *count_max* are under way."""
        done = []
        while self._under_way and (
            len(self._under_way) > count_max or self._under_way[0].ended.is_set()
        ):
            first = self._under_way[0]
            while not first.ended.wait(_SLICE_SECONDS):
                self._store.waiting()
            del self._under_way[0]
            if first.error is not None:
                raise first.error
            done.append((first.tag, first.is_new))
        return done
