"""An encrypted store: what is beneath tells nothing, and what was changed there is found."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusejournal.objects.store import ObjectMissingError, StoreError
from fusejournal.versions.keys import (
    StoreKey,
    StoreKeyError,
    parse_key,
    read_key,
    read_key_file,
    write_key,
    write_key_file,
)
from fusejournal.versions.manifest import StoreHead, make_store, store_head
from fusejournal.versions.packs import StoreDamagedError
from fusejournal.versions.place import StorePlace, open_place, unsealed
from fusejournal.versions.sealed_store import SealedStore
from tests.support.objects import KEY_OF_TESTS, MemoryStore, sealed_store

_SEGMENT = 16_384
_SIZES = (0, 1, _SEGMENT - 1, _SEGMENT, _SEGMENT + 1, 3 * _SEGMENT, 3 * _SEGMENT + 77)


@pytest.mark.parametrize("size", _SIZES)
def test_every_range_is_what_was_put(size: int) -> None:
    content = os.urandom(size)
    beneath = MemoryStore()
    sealed_store(beneath).put_new("packs/one", content)
    for start in (0, 1, _SEGMENT - 1, _SEGMENT, 2 * _SEGMENT + 5, size, size + 1, 9 * _SEGMENT):
        for length in (0, 1, 16, _SEGMENT, 2 * _SEGMENT + 1, 9 * _SEGMENT):
            found = sealed_store(beneath).get_range("packs/one", start, length)
            assert found == content[start:][:length]
    assert sealed_store(beneath).get("packs/one") == content


@given(st.integers(0, 60_000), st.integers(0, 70_000), st.integers(0, 70_000))
def test_any_range_is_what_was_put(size: int, start: int, length: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    store = sealed_store(MemoryStore())
    store.put_new("a/b", content[:size])
    assert store.get_range("a/b", start, length) == content[:size][start : start + length]


def test_nothing_is_to_be_seen_beneath() -> None:
    beneath = MemoryStore()
    store = sealed_store(beneath)
    content = b"known content " * 5000
    name = "index/" + "ab" * 32
    store.put_new(name, content)
    (found,) = beneath.objects
    assert found.startswith("index/")
    assert "abab" not in found
    assert b"known" not in beneath.objects[found]
    # The same again is other bytes, so that no reader can tell that it is the same.
    first = beneath.objects[found]
    store.remove(name)
    store.put_new(name, content)
    assert list(beneath.objects) == [found]
    assert beneath.objects[found][40:] != first[40:]
    assert store.get_range(name, 0, 5) == b"known"


def test_every_change_is_found() -> None:
    beneath = MemoryStore()
    content = os.urandom(_SEGMENT + 50)
    sealed_store(beneath).put_new("a/b", content)
    (name,) = beneath.objects
    true = beneath.objects[name]

    def check(spoilt: bytes) -> None:
        beneath.objects[name] = spoilt
        for read in (
            lambda: sealed_store(beneath).get("a/b"),
            lambda: sealed_store(beneath).get_range("a/b", 0, 2 * _SEGMENT),
        ):
            with pytest.raises(StoreDamagedError):
                read()

    for at in (0, 7, 8, 39, 40, 41, 40 + _SEGMENT, 40 + _SEGMENT + 16, len(true) - 1):
        check(true[:at] + bytes([true[at] ^ 1]) + true[at + 1 :])
    for end in (0, 39, 40, 41, 40 + _SEGMENT + 16, len(true) - 1):
        check(true[:end])
    check(true + b"x")
    second = 40 + _SEGMENT + 16
    check(true[:40] + true[second:])
    check(true[:second] + true[40:second] + true[second:])


def test_an_object_is_found_under_its_own_name_only() -> None:
    beneath = MemoryStore()
    store = sealed_store(beneath)
    store.put_new("a/one", b"1")
    store.put_new("a/two", b"2")
    one, two = (beneath.objects[name] for name in beneath.objects)
    for name, content in zip(list(beneath.objects), (two, one), strict=True):
        beneath.objects[name] = content
    for name in ("a/one", "a/two"):
        with pytest.raises(StoreDamagedError, match="not what was put"):
            store.get(name)
    beneath.objects["a/of-somebody-else"] = b""
    with pytest.raises(StoreDamagedError, match="no object of this store"):
        list(store.names("a/"))


def test_an_object_that_is_made_again_is_read_by_whoever_knew_the_first() -> None:
    beneath = MemoryStore()
    reader, other = sealed_store(beneath), sealed_store(beneath)
    other.put_new("a/b", b"first")
    assert reader.get_range("a/b", 0, 5) == b"first"
    other.remove("a/b")
    with pytest.raises(ObjectMissingError):
        reader.get_range("a/b", 0, 5)
    other.put_new("a/b", b"again")
    assert reader.get_range("a/b", 0, 5) == b"again"


def test_stores_under_one_key_do_not_take_each_others_objects() -> None:
    beneath = MemoryStore()
    SealedStore(beneath, KEY_OF_TESTS, "one").put_new("a/b", b"content")
    other = SealedStore(beneath, KEY_OF_TESTS, "two")
    with pytest.raises(ObjectMissingError):
        other.get("a/b")
    with pytest.raises(StoreDamagedError):
        list(other.names("a/"))


# -- keys ------------------------------------------------------------------------------------------


def test_a_recovery_key_is_read_however_it_is_typed() -> None:
    key = StoreKey.make()
    for text in (key.text, key.text.lower(), f"  {key.text}\n", key.text.replace("-", " ")):
        assert parse_key("x", text).id == key.id
    assert key.text not in repr(key)
    assert key.id != StoreKey.make().id


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text[:9] + ("A" if text[9] != "A" else "B") + text[10:],
        lambda text: "",
        lambda text: text.replace("FJK1", "FJK2"),
    ],
)
def test_one_that_was_mistyped_is_refused_unrepeated(spoil: Callable[[str], str]) -> None:
    text = spoil(KEY_OF_TESTS.text)
    with pytest.raises(StoreKeyError, match="no recovery key") as raised:
        parse_key("x", text)
    assert raised.value.exit_code == 48
    assert text[9:20] == "" or text[9:20] not in str(raised.value)


def test_a_key_is_roots_alone(tmp_path: Path) -> None:
    assert read_key(tmp_path) is None
    write_key(tmp_path, KEY_OF_TESTS)
    found = read_key(tmp_path)
    assert found is not None
    assert found.id == KEY_OF_TESTS.id
    assert (tmp_path / "store.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "store.key").chmod(0o640)
    with pytest.raises(StoreKeyError, match="chmod 600"):
        read_key(tmp_path)
    write_key_file(tmp_path / "out", KEY_OF_TESTS)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StoreKeyError, match="there already"):
        write_key_file(tmp_path / "out", KEY_OF_TESTS)
    (tmp_path / "out").chmod(0o644)
    assert read_key_file(tmp_path / "out", private=False).id == KEY_OF_TESTS.id


def test_the_key_has_to_be_that_of_the_store(tmp_path: Path) -> None:
    beneath = MemoryStore()
    head = make_store(beneath, KEY_OF_TESTS.id)
    assert head == store_head(beneath)
    assert head.key_id == KEY_OF_TESTS.id
    assert make_store(beneath) == head
    unsealed(beneath, head, KEY_OF_TESTS).put_new("a/b", b"")
    with pytest.raises(StoreKeyError, match="which is not here"):
        unsealed(beneath, head, None)
    with pytest.raises(StoreKeyError, match="and this is key"):
        unsealed(beneath, head, StoreKey.make())
    assert unsealed(beneath, StoreHead("id", ""), None) is beneath


def test_one_that_says_that_it_is_plain_by_now_gets_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    (tmp_path / "store/store").write_text('{"format": 1, "id": "x"}')
    place = StorePlace(str(tmp_path / "store"), "x", KEY_OF_TESTS.id)
    with pytest.raises(StoreError, match="was encrypted"):
        open_place(place, writing=True, key=KEY_OF_TESTS)
    (tmp_path / "store/store").write_text('{"format": 2, "id": "x", "key_id": "y", "ciphers": "z"}')
    with pytest.raises(StoreError, match="newer version"):
        open_place(place, writing=True, key=KEY_OF_TESTS)
