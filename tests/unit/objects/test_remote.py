"""A store at a service that answers late, twice, wrongly or not at all; and the way to it."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusejournal.config import StoreConfig
from fusejournal.objects.read_windows import WindowedStore
from fusejournal.objects.service import (
    do_not_wait,
    holds_secrets,
    open_service,
    parse_address,
)
from fusejournal.objects.store import (
    ObjectExistsError,
    ObjectMissingError,
    StoreAwayError,
    StoreError,
    probe,
    put_same,
)
from fusejournal.objects.uploads import Uploads
from tests.support import bad_proxy
from tests.support.bad_proxy import BadProxy
from tests.support.objects import MemoryStore, library_store
from tests.support.seaweed import SECRET, SeaweedFS, open_seaweed


@pytest.fixture
def proxy(seaweed: SeaweedFS) -> Iterator[BadProxy]:
    with BadProxy(seaweed.port) as proxy:
        yield proxy


def test_a_creation_whose_answer_was_lost_was_made(seaweed: SeaweedFS, proxy: BadProxy) -> None:
    store = open_seaweed(seaweed, port=proxy.port)
    proxy.behaviours = [bad_proxy.lose_answer]
    store.put_new("a/b", b"content")
    assert store.get("a/b") == b"content"
    assert sum(seen.startswith("PUT") for seen in proxy.seen) == 1
    with pytest.raises(ObjectExistsError):
        store.put_new("a/b", b"content")


def test_another_one_that_was_first_is_not_taken_for_it(
    seaweed: SeaweedFS, proxy: BadProxy
) -> None:
    address = seaweed.address()
    open_seaweed(seaweed, address).put_new("a/b", b"another")
    store = open_seaweed(seaweed, address, port=proxy.port)
    for behaviour in (bad_proxy.lose_answer, bad_proxy.lose_request):
        proxy.behaviours = [behaviour]
        with pytest.raises(ObjectExistsError):
            store.put_new("a/b", b"content")
    assert store.get("a/b") == b"another"


def test_what_is_lost_or_refused_for_a_while_is_sent_again(
    seaweed: SeaweedFS, proxy: BadProxy
) -> None:
    seen: list[bool] = []
    store = open_seaweed(seaweed, port=proxy.port, waiting=lambda: seen.append(is_away()))

    def is_away() -> bool:
        assert store.traffic is not None
        return store.traffic.is_away

    proxy.behaviours = [bad_proxy.lose_request, bad_proxy.busy]
    store.put_new("a/b", b"content")
    assert any(seen)
    assert not is_away()
    calls = {
        "get": lambda: store.get("a/b") == b"content",
        "range": lambda: store.get_range("a/b", 1, 2) == b"on",
        "names": lambda: list(store.names("a/")) == ["a/b"],
    }
    for name, call in calls.items():
        proxy.behaviours = [bad_proxy.busy, bad_proxy.lose_request]
        assert call(), name
        assert proxy.behaviours == [], name
    proxy.behaviours = [bad_proxy.busy, bad_proxy.lose_request]
    store.remove("a/b")
    assert proxy.behaviours == []
    assert list(store.names("a/")) == []


def test_a_creation_that_is_done_twice_is_done(seaweed: SeaweedFS, proxy: BadProxy) -> None:
    store = open_seaweed(seaweed, port=proxy.port)
    proxy.behaviours = [bad_proxy.twice]
    assert not put_same(store, "a/b", b"content")
    assert store.get("a/b") == b"content"


def test_a_creation_that_lands_after_its_time(seaweed: SeaweedFS) -> None:
    store = open_seaweed(seaweed, request_seconds=0.5, retry_seconds=20)
    probe(store)
    seaweed.suspend()
    timer = threading.Timer(1.2, seaweed.resume)
    timer.start()
    try:
        store.put_new("a/b", b"content")
    finally:
        timer.join()
    assert store.get("a/b") == b"content"


def test_one_that_answers_too_late_is_away(seaweed: SeaweedFS, proxy: BadProxy) -> None:
    store = open_seaweed(seaweed, port=proxy.port, request_seconds=1, retry_seconds=0)
    proxy.behaviours = [bad_proxy.late(2)]
    with pytest.raises(StoreAwayError, match="nothing is lost") as raised:
        store.put_new("a/b", b"content")
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 47
    # The read-back of a caller that does not mind who made it.
    proxy.behaviours = [bad_proxy.late(2)]
    assert put_same(store, "a/c", b"content")


def test_what_was_spoilt_on_its_way_is_sent_again_or_refused(
    seaweed: SeaweedFS, proxy: BadProxy
) -> None:
    store = open_seaweed(seaweed, port=proxy.port)

    def spoil(exchange: bad_proxy.Exchange) -> bytes:
        exchange.body = exchange.body.replace(b"content", b"c0ntent")
        return exchange.forward()

    proxy.behaviours = [spoil]
    with pytest.raises(StoreError):
        store.put_new("a/b", b"content")
    assert list(store.names("a/")) == []


def test_an_answer_that_tells_of_other_content_is_not_believed() -> None:
    """It may be spoilt where the service has no checksum of what was sent, or encrypts."""
    store = library_store()

    class Spoiling:
        """Keeps what it is told to, and says that it kept something else."""

        kept: bytes | None = None

    def put(service: object, name: str, data: bytes, **_: object) -> dict[str, str]:
        real_put(service, name, Spoiling.kept or data, mode="create")
        return {"e_tag": f'"{"0" * 32}"'}

    obstore = sys.modules["obstore"]
    real_put = obstore.put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstore, "put", put)
        Spoiling.kept = b"c0ntent"
        with pytest.raises(StoreError, match="not kept as it was sent"):
            store.put_new("a/b", b"content")
        assert list(store.names("a/")) == []
        Spoiling.kept = None
        store.put_new("a/b", b"content")
        store.put_new("a/c", b"content")


def test_an_answer_that_is_cut_off_is_asked_for_again(seaweed: SeaweedFS, proxy: BadProxy) -> None:
    store = open_seaweed(seaweed, port=proxy.port)
    store.put_new("a/b", b"content" * 1000)
    proxy.behaviours = [lambda exchange: exchange.forward()[:-100]]
    assert store.get("a/b") == b"content" * 1000
    proxy.behaviours = [lambda exchange: exchange.forward()[:-100]]
    assert store.get_range("a/b", 7, 70) == b"content" * 10


def test_one_that_is_away_is_tried_for_a_while_once(seaweed: SeaweedFS) -> None:
    with BadProxy(1) as nobody:
        store = open_seaweed(seaweed, port=nobody.port, retry_seconds=0.5)
        began = time.monotonic()
        with pytest.raises(StoreAwayError):
            store.get("a/b")
        assert time.monotonic() - began >= 0.5
        tried = len(nobody.seen)
        assert tried > 1
        with pytest.raises(StoreAwayError):
            store.remove("a/b")
        assert len(nobody.seen) == tried + 1


def test_a_wait_can_be_ended(seaweed: SeaweedFS) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with BadProxy(1) as nobody:
        store = open_seaweed(seaweed, port=nobody.port, waiting=stop)
        with pytest.raises(KeyboardInterrupt):
            store.get("a/b")


def test_what_cannot_help_is_not_tried_again(seaweed: SeaweedFS, proxy: BadProxy) -> None:
    wrong = {**seaweed.options(proxy.port), "secret_access_key": "wrong-and-hidden"}
    for options, words in (
        (wrong, "access is denied"),
        ({**wrong, "allow_http": "false"}, "needs allow_http"),
        ({**wrong, "bogus": "x"}, "settings are wrong"),
    ):
        address = parse_address(seaweed.address())
        with pytest.raises(StoreError, match=words) as raised:
            open_service(address, StoreConfig(options=options), do_not_wait).get("a/b")
        assert not isinstance(raised.value, StoreAwayError)
        assert "hidden" not in str(raised.value)
        assert "\n" not in str(raised.value)
    assert len(proxy.seen) == 1
    store = open_seaweed(seaweed, "s3://no-such-bucket/x")
    for call in (
        lambda: store.get("a/b"),
        lambda: store.put_new("a/b", b""),
        lambda: list(store.names("a/")),
    ):
        with pytest.raises(StoreError, match="no such bucket") as raised:
            call()
        assert not isinstance(raised.value, ObjectMissingError)


def test_bytes_have_a_pace(seaweed: SeaweedFS) -> None:
    store = open_seaweed(
        seaweed, upload_bytes_per_second=100_000, download_bytes_per_second=100_000
    )
    began = time.monotonic()
    store.put_new("a/b", bytes(30_000))
    store.put_new("a/c", bytes(10_000))
    middle = time.monotonic()
    store.get("a/b")
    assert 0.35 < middle - began < 5
    assert time.monotonic() - middle > 0.25


# -- several at a time -----------------------------------------------------------------------------


class _Slow(MemoryStore):
    uploads = 3

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = 0
        self.lock = threading.Lock()

    def put_new(self, name: str, data: bytes | bytearray | memoryview) -> None:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.02)
        with self.lock:
            self.under_way -= 1
        if data == b"bad":
            raise StoreError(self.where, "bad")
        super().put_new(name, data)


def test_objects_are_under_way_together_and_told_in_order() -> None:
    store = _Slow()
    uploads: Uploads[int] = Uploads(store)
    done = []
    for number in range(10):
        done += uploads.put(f"a/{number % 9}", b"x", number)
    done += uploads.finish()
    assert [tag for tag, _ in done] == list(range(10))
    assert done[-1] == (9, False)
    assert store.most == 3
    assert len(store.objects) == 9


def test_one_that_fails_is_told() -> None:
    uploads: Uploads[int] = Uploads(_Slow())
    uploads.put("a/b", b"bad", 1)
    with pytest.raises(StoreError, match="bad"):
        uploads.finish()


# -- the way to it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "s3://", "s3://b", "ftp://bucket/x", "s3://key:secret@bucket/x", "s3://bucket/../x",
        "s3://bucket/a?b=secret", "s3:///x", "://x",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_unrepeated(text: str) -> None:
    with pytest.raises(StoreError) as raised:
        parse_address(text)
    assert "secret" not in str(raised.value)


def test_an_address_has_one_form() -> None:
    for text in ("s3://bucket/a/b", "s3://bucket/a/b/"):
        assert str(parse_address(text)) == "s3://bucket/a/b"
    assert str(parse_address("az://container")) == "az://container"


def test_other_services_are_reached_by_their_own_settings() -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    open_service(
        parse_address("az://container/x"),
        StoreConfig(options={"account_name": "account", "account_key": "c2VjcmV0"}),
        do_not_wait,
    )
    with pytest.raises(StoreError, match="settings are wrong"):
        open_service(parse_address("az://container/x"), StoreConfig(), do_not_wait)
    open_service(
        parse_address("gs://bucket"), StoreConfig(options={"skip_signature": "true"}), do_not_wait
    )


def test_credentials_come_from_the_usual_files(
    seaweed: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        f"[backup]\naws_access_key_id = AKTEST\naws_secret_access_key = {SECRET}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile backup]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:{seaweed.port}\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "backup")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    config = StoreConfig(options={"allow_http": "true"})
    store = open_service(parse_address(seaweed.address()), config, do_not_wait)
    probe(store)
    (tmp_path / "config").write_text("no profile")
    with pytest.raises(StoreError, match="cannot be read"):
        open_service(parse_address(seaweed.address()), config, do_not_wait)


def test_secrets_are_known_by_their_names() -> None:
    assert holds_secrets({"secret_access_key": "x"})
    assert holds_secrets({"Account_Key": "x"})
    assert not holds_secrets({"endpoint": "x", "region": "y", "allow_http": "true"})


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=re.escape("fusejournal[remote]")):
        open_service(parse_address("s3://bucket/x"), StoreConfig(), do_not_wait)


# -- small ranges by large ones --------------------------------------------------------------------


class _Counting(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[str, int, int]] = []

    def get_range(self, name: str, start: int, length: int) -> bytes:
        self.read.append((name, start, length))
        return super().get_range(name, start, length)


def test_small_ranges_are_read_by_large_ones_once() -> None:
    beneath = _Counting()
    content = os.urandom(600_000)
    store = WindowedStore(beneath, ("packs/",))
    store.put_new("packs/one", content)
    for start in range(0, 600_000, 997):
        assert store.get_range("packs/one", start, 5000) == content[start : start + 5000]
    assert len(beneath.read) == 3
    assert store.get_range("packs/one", 100, 400_000) == content[100:400_100]
    assert len(beneath.read) == 4
    store.remove("packs/one")
    with pytest.raises(ObjectMissingError):
        store.get_range("packs/one", 0, 1)
    for _ in range(300):
        store.put_new(f"packs/n{_}", b"x")
        assert store.get_range(f"packs/n{_}", 0, 9) == b"x"
    assert len(store._windows) <= 128


def test_whether_it_is_there_is_asked_each_time() -> None:
    store = WindowedStore(_Counting(), ("packs/",))
    store.put_new("active/one", b"x")
    assert store.get_range("active/one", 0, 1) == b"x"
    store.remove("active/one")
    with pytest.raises(ObjectMissingError):
        store.get_range("active/one", 0, 1)


def test_a_window_that_could_not_be_read_is_read_again(seaweed: SeaweedFS) -> None:
    with BadProxy(seaweed.port) as proxy:
        address = seaweed.address()
        open_seaweed(seaweed, address).put_new("packs/a", b"content")
        store = open_seaweed(seaweed, address, port=proxy.port, retry_seconds=0)
        proxy.behaviours = [bad_proxy.busy]
        with pytest.raises(StoreAwayError):
            store.get_range("packs/a", 0, 1)
        assert store.get_range("packs/a", 0, 1) == b"c"


def test_a_service_that_ignores_the_condition_is_refused(
    seaweed: SeaweedFS, proxy: BadProxy
) -> None:
    """Some take the header of *create if absent*, and make the object again."""
    ignored = b'HTTP/1.1 200 OK\r\nConnection: close\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n'
    proxy.matches = lambda exchange: exchange.method == "PUT"
    proxy.behaviours = [bad_proxy.honest, lambda _: ignored]
    with pytest.raises(StoreError, match="a second time"):
        probe(open_seaweed(seaweed, port=proxy.port))
