"""Addresses and peers as people write them."""

import pytest

from fusejournal.address import (
    Address,
    check_peer_name,
    default_node_name,
    parse_address,
    parse_peer,
    parse_remote,
)
from fusejournal.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:1", ("host", 1)),
        ("10.1.2.3:7733", ("10.1.2.3", 7733)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        (":7733", ("", 7733)),
        ("[::1]:7733", ("::1", 7733)),
        ("[::]:0", ("::", 0)),
        ("[fe80::1%eth0]:7733", ("fe80::1%eth0", 7733)),
        ("mirror-1.example.org:80", ("mirror-1.example.org", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", "host:x", "host:65536", "host:-1", "host:٣", "::1:80", "[::1]"),
        *("[x]:1", "[]:1", "a b:1", "a/b:1", "a\n:1", "host:1 ", "http://host:1"),
        *("h" * 300 + ":1", "h:" + "1" * 99),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT, or \[IPv6\]:PORT") as caught:
        parse_address(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", [":7733", "host:0"])
def test_where_nobody_can_be_reached(text: str) -> None:
    with pytest.raises(UsageError, match="needs a host and a port"):
        parse_remote(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("h:1", "H.:1", True),
        ("[::1]:1", "[0:0::1]:1", True),
        ("h:1", "h:2", False),
        ("h:1", "i:1", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
    ],
)
def test_one_place_written_twice(one: str, other: str, same: bool) -> None:
    assert parse_address(one).is_same(parse_address(other)) == same


def test_peers() -> None:
    assert parse_peer("cellar=[::1]:7733") == ("cellar", Address("::1", 7733))
    for text in ("cellar", "=h:1", "-x=h:1", "a b=h:1", "cellar=:1", "../x=h:1"):
        with pytest.raises(UsageError):
            parse_peer(text)


@pytest.mark.parametrize("name", [None, 5, "", ".", "-a", "a/b", "a=b", "ü", "a\n", "x" * 65])
def test_bad_names(name: object) -> None:
    with pytest.raises(UsageError, match="cannot be a peer's name"):
        check_peer_name(name)


@pytest.mark.parametrize("host", ["", "-", "...", "mühle.example.org", "x" * 200, "cellar", "_1"])
def test_a_machine_gives_its_node_a_name(host: str) -> None:
    check_peer_name(default_node_name(host))
    assert default_node_name("cellar.example.org") == "cellar"
