"""A store of objects at a service: S3, Google Cloud Storage, Azure, or one that speaks like them.

*Creation.* A request that failed may have been carried out all the same, and one that gets no
answer may still be. So before an object is put again it is looked for, and one that is there with
the same content was made by this call. What an answer says of the content (an ETag that is its MD5)
is compared; where it is something else the object is read back.

*Requests* have an end (``request_seconds``), and are tried again at growing intervals while the
service cannot be reached, has an error of its own or asks for patience, for ``retry_seconds`` in
all; then the store is away (StoreAwayError). Once it is, each further call tries once, until one
succeeds: a caller that tidies up after the error does not wait for all that time again.

*Threads.* Calls may come from several threads. Each request is made in a thread of its own, because
it cannot be taken back: the thread that waits for it calls *waiting* meanwhile, which may raise.

Not to be used by a process that forks later: the library's own threads are not in the child.

Source: the documentation of obstore and of Rust's object_store; RFC 9110 (conditional requests)."""

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import obstore
from obstore import exceptions

from fusejournal.config import StoreConfig
from fusejournal.disk import failpoints
from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    ObjectTraffic,
    StoreAwayError,
    StoreError,
    StoreFullError,
    check_name,
)

_T = TypeVar("_T")
_LIST_CHUNK = 1000
_SLICE_SECONDS = 0.2
"""The time after which a thread that waits calls *waiting*."""
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.2, 10.0
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_WORDS = re.compile(r"<Message>([^<]{1,200})</Message>")
_QUERY = re.compile(r"\?\S*")
"""The part of an address in which some services are given secrets."""
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_PATIENCE = frozenset({408, 409, 425, 429})
_NO_SPACE = frozenset({413, 507})
_NO_RANGE = 416
_INSTANCE_ADDRESS = "169.254.169.254"
"""The address at which a machine of a cloud is told its credentials."""


class RemoteStore:
    """The store that *service*, a store of obstore's, gives access to. *where* names it."""

    def __init__(
        self,
        service: Any,
        where: str,
        config: StoreConfig,
        waiting: Callable[[], None],
    ) -> None:
        """*waiting* is called every now and then while a call waits, by the thread that waits, and
        may raise what the call then raises."""
        self.where = where
        self.uploads = config.uploads
        self._service = service
        self._retry_seconds = config.retry_seconds
        self._raise_if_ended = waiting
        self._upload_pace = _Pace(config.upload_bytes_per_second)
        self._download_pace = _Pace(config.download_bytes_per_second)
        self._is_away = False
        self._etag_is_md5 = True
        self.traffic = ObjectTraffic()

    def waiting(self) -> None:
        """Raises what *waiting* of the constructor raises."""
        self._raise_if_ended()

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Implements ObjectStore.put_new, and raises StoreAwayError."""
        check_name(name)
        is_first = True

        def put_once() -> Any:
            nonlocal is_first
            if not is_first and self._is_there(name, data):
                return None
            was_first, is_first = is_first, False
            try:
                return obstore.put(self._service, name, data, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                # An earlier attempt may have landed only now.
                if was_first or not self._is_there(name, data):
                    raise
                return None

        self._sleep(self._upload_pace.delay(len(data)))
        failpoints.reached("remote.put")
        result = self._call(name, put_once)
        failpoints.reached("remote.put.done")
        self.traffic.note(sent_bytes=len(data))
        if result is not None and not self._is_confirmed(result, data):
            self._read_back(name, data)

    def _is_there(self, name: str, data: bytes | bytearray | memoryview) -> bool:
        """Returns True if the object is there by an earlier attempt. Raises ObjectExistsError if
        there is another."""
        try:
            found = obstore.get(self._service, name).bytes()
        except FileNotFoundError:
            return False
        if memoryview(found) != memoryview(data):
            raise ObjectExistsError(self.where, f"{name} is there already")
        return True

    def _is_confirmed(self, result: Any, data: bytes | bytearray | memoryview) -> bool:
        """Returns True unless the answer tells of other content."""
        match = _MD5.fullmatch(result["e_tag"] or "")
        if match is None or not self._etag_is_md5:
            return True
        return match[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()

    def _read_back(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Raises StoreError, and removes the object, unless it has the content *data*."""
        if self.get(name) == data or self.get(name) == data:
            self._etag_is_md5 = False  # as where the service encrypts
            return
        self.remove(name)
        raise StoreError(self.where, f"{name} was not kept as it was sent: try again")

    def get(self, name: str) -> bytes:
        """Implements ObjectStore.get, and raises StoreAwayError."""
        check_name(name)
        return self._received(
            self._call(name, lambda: bytes(obstore.get(self._service, name).bytes()))
        )

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Implements ObjectStore.get_range, and raises StoreAwayError."""
        check_name(name)
        if length <= 0:
            return b""
        return self._received(self._call(name, lambda: self._get_range(name, start, length)))

    def _get_range(self, name: str, start: int, length: int) -> bytes:
        try:
            found = obstore.get_range(self._service, name, start=start, length=length)
        except exceptions.BaseError as error:
            if _status(error) not in (None, _NO_RANGE):
                raise
            if start < obstore.head(self._service, name)["size"]:
                raise
            return b""
        return bytes(found)

    def _received(self, content: bytes) -> bytes:
        self.traffic.note(received_bytes=len(content))
        self._sleep(self._download_pace.delay(len(content)))
        return content

    def names(self, prefix: str) -> Iterator[str]:
        """Implements ObjectStore.names, and raises StoreAwayError."""
        directory = check_name(prefix.removesuffix("/"))

        def list_all() -> list[str]:
            chunks = obstore.list(self._service, directory, chunk_size=_LIST_CHUNK)
            return [found["path"] for chunk in chunks for found in chunk]

        yield from sorted(name for name in self._call(prefix, list_all) if name.startswith(prefix))

    def remove(self, name: str) -> None:
        """Implements ObjectStore.remove, and raises StoreAwayError."""
        check_name(name)

        def remove_once() -> None:
            try:
                obstore.delete(self._service, name)
            except FileNotFoundError as error:
                if _CODE.search(str(error)) and "NoSuchBucket" in str(error):
                    raise

        failpoints.reached("remote.remove")
        self._call(name, remove_once)

    # -- requests ----------------------------------------------------------------------------------

    def _call(self, name: str, request: Callable[[], _T]) -> _T:
        """Carries out *request* for object *name*, more than once if need be. Raises StoreError,
        and what *waiting* raises."""
        end = time.monotonic() + (0.0 if self._is_away else self._retry_seconds)
        pause = _PAUSE_SECONDS
        while True:
            try:
                result = self._wait_for(request)
            except (exceptions.BaseError, OSError, ValueError) as raised:
                error = self._error(name, raised)
            else:
                self._is_away = False
                self.traffic.note_away(False)
                return result
            if not isinstance(error, StoreAwayError):
                raise error
            left = end - time.monotonic()
            if left <= 0:
                self._is_away = True
                raise error
            self.traffic.note_away(True)
            self._sleep(min(left, pause * (0.5 + random.random() / 2)))
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    def _wait_for(self, request: Callable[[], _T]) -> _T:
        """Returns what *request* returns, in a thread of its own."""
        found: list[_T] = []
        failed: list[BaseException] = []
        ended = threading.Event()

        def make() -> None:
            try:
                found.append(request())
            except BaseException as error:
                failed.append(error)
            finally:
                ended.set()

        threading.Thread(target=make, daemon=True).start()
        while not ended.wait(_SLICE_SECONDS):
            self.waiting()
        if failed:
            raise failed[0]
        return found[0]

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_SECONDS))
            self.waiting()

    def _error(self, name: str, error: Exception) -> StoreError:
        """Returns the error that the library's *error* is to a caller: one line, without the
        address's query, in which some services are given a key."""
        raw = str(error)
        status, code = _status(error), _CODE.search(raw)
        if code is not None and code[1] in ("NoSuchBucket", "ContainerNotFound"):
            return StoreError(self.where, "there is no such bucket: make it first")
        if isinstance(error, FileNotFoundError):
            return ObjectMissingError(self.where, f"{name} is missing")
        if isinstance(error, exceptions.AlreadyExistsError) and status not in _PATIENCE:
            return ObjectExistsError(self.where, f"{name} is there already")
        if _INSTANCE_ADDRESS in raw:
            return StoreError(self.where, "no credentials were found: see 'version store --help'")
        words = self._words(raw)
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            return StoreError(self.where, f"access is denied ({words}): check the credentials")
        if status in _NO_SPACE:
            return StoreFullError(self.where, f"no space left ({words})")
        is_final = status is not None and status < 500 and status not in _PATIENCE
        if is_final or isinstance(error, ValueError) or "builder error" in raw:
            hint = " (http:// needs allow_http)" if "BadScheme" in raw else ""
            return StoreError(self.where, f"the request was refused: {words}{hint}")
        return StoreAwayError(
            self.where, f"is away, nothing is lost: try again later ({words}; see [store])"
        )

    def _words(self, raw: str) -> str:
        """Returns the short form of the library's message *raw*."""
        code, words = _CODE.search(raw), _WORDS.search(raw)
        if code is not None:
            return f"{code[1]}: {words[1].rstrip('.')}" if words is not None else code[1]
        first = raw.partition("\n\nDebug source:")[0].partition("\n")[0]
        return _QUERY.sub("", first.rpartition(" - ")[2])[:200]


def _status(error: Exception) -> int | None:
    """Returns the status of the answer that *error* describes, if there was one."""
    match = _STATUS.search(str(error))
    return int(match[1]) if match is not None else None


class _Pace:
    """Spreads bytes over time, so that no more than so many a second go on average."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free = 0.0

    def delay(self, count: int) -> float:
        """Returns the seconds to wait because of *count* bytes, and of those that came before."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        with self._lock:
            self._free = max(self._free, now) + count / self._rate
            return self._free - now
