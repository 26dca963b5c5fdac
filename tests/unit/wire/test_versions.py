"""Two nodes of different releases find what they have in common, or say which is to be upgraded."""

import pytest

from fusejournal.journal.format import FORMAT_VERSION
from fusejournal.operations import Kind
from fusejournal.types import Epoch, Position, Seq
from fusejournal.wire.frames import Hello, Refusal
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import (
    SHIP,
    HandshakeState,
    RefusedError,
    check_welcome,
    hello,
    speaks_of_same,
    welcome,
)
from fusejournal.wire.versions import (
    OWN_VERSIONS,
    Versions,
    common_version,
    unreadable_entries,
    versions_of,
)
from tests.golden.files import UUID_OF_GOLDENS

_RELEASE_0_1_0 = Versions(1, 1, 1, Kind.CLEAN)


def _node(name: str, versions: Versions = OWN_VERSIONS) -> HandshakeState:
    position = Position(Epoch(1), Seq(7), 0x77)
    return HandshakeState(name, UUID_OF_GOLDENS, position, Epoch(1), Seq(7), versions=versions)


def _of(oldest: int, newest: int) -> Versions:
    return OWN_VERSIONS._replace(oldest=oldest, newest=newest)


def _like_0_1_0(greeting: Hello) -> Hello:
    return greeting._replace(newest_version=0, journal_format=0, newest_kind=0)


def test_what_this_program_speaks() -> None:
    """Release 0.1.0 speaks version 1, takes no other, and its nodes are to be upgraded one by
    one."""
    assert Versions(1, 4, FORMAT_VERSION, Kind.SETFLAGS) == OWN_VERSIONS
    assert common_version(OWN_VERSIONS, _RELEASE_0_1_0) == 1
    assert hello(_node("a"), SHIP).version == 1
    assert welcome(_node("b"), hello(_node("a"), SHIP), is_mirror=True).version == 1


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (_of(1, 1), _of(1, 1), 1),
        (_of(1, 3), _of(1, 2), 2),
        (_of(2, 3), _of(1, 2), 2),
        (_of(2, 2), _of(1, 5), 2),
        (_of(2, 3), _of(1, 1), None),
        (_of(7, 9), _of(2, 3), None),
    ],
)
def test_the_newest_that_both_speak(one: Versions, other: Versions, common: int | None) -> None:
    assert common_version(one, other) == common_version(other, one) == common
    connector, listener = _node("a", one), _node("b", other)
    greeting = hello(connector, SHIP)
    assert versions_of(greeting) == one
    assert speaks_of_same(listener, greeting) == (common is not None)
    if common is not None:
        answer = welcome(listener, greeting, is_mirror=True)
        assert versions_of(check_welcome(connector, answer)) == other


@pytest.mark.parametrize(
    ("connector", "listener", "words"),
    [
        (
            _of(2, 3),
            _of(1, 1),
            "a speaks versions 2 to 3 of the protocol, and b version 1: upgrade b",
        ),
        (
            _of(1, 1),
            _of(2, 3),
            "a speaks version 1 of the protocol, and b versions 2 to 3: upgrade a",
        ),
    ],
)
def test_none_in_common(connector: Versions, listener: Versions, words: str) -> None:
    """The listener says it, and would the connector if the listener did not."""
    a, b = _node("a", connector), _node("b", listener)
    with pytest.raises(RefusedError) as refused:
        welcome(b, hello(a, SHIP), is_mirror=True)
    assert (refused.value.code, str(refused.value)) == (RefusalCode.VERSION, words)
    assert refused.value.message() == Refusal(RefusalCode.VERSION, words)
    told = welcome(b, hello(_node("a", listener), SHIP), is_mirror=True)
    with pytest.raises(RefusedError, match=f"upgrade {words[-1]}$") as refused:
        check_welcome(a, told)
    assert refused.value.code == RefusalCode.VERSION


def test_what_0_1_0_does_not_say() -> None:
    greeting = _like_0_1_0(hello(_node("a"), SHIP))
    assert versions_of(greeting) == _RELEASE_0_1_0
    assert welcome(_node("b"), greeting, is_mirror=True).node == "b"


@pytest.mark.parametrize("newest", [0, 1, 2, 2**64 - 1])
def test_a_greeting_that_contradicts_itself(newest: int) -> None:
    """A version above its own newest counts as one version."""
    greeting = hello(_node("a"), SHIP)._replace(version=9, newest_version=newest)
    assert versions_of(greeting)[:2] == (9, max(9, newest))
    with pytest.raises(RefusedError, match="upgrade b"):
        welcome(_node("b"), greeting, is_mirror=True)


def test_which_entries_cannot_be_read() -> None:
    assert unreadable_entries(OWN_VERSIONS, OWN_VERSIONS) is None
    assert unreadable_entries(_RELEASE_0_1_0, OWN_VERSIONS) is None
    words = unreadable_entries(OWN_VERSIONS, _RELEASE_0_1_0)
    assert words == "reads entries up to kind 19, of 22"
    newer = OWN_VERSIONS._replace(journal_format=FORMAT_VERSION + 1)
    words = unreadable_entries(newer, OWN_VERSIONS)
    assert words == f"reads journals up to format {FORMAT_VERSION}, of {FORMAT_VERSION + 1}"
