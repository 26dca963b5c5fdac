"""Asks all peers at once, shipped to or not: where their journals end, or for their word for a
reign that this node is to begin (wire/session.py).

A reign is begun with the word of so many nodes (:func:`words_needed`) that no two can have it for
one epoch, and that no other primary finds mirrors enough any more to acknowledge something. That
holds for a mirror that is promoted, and for a primary that has lost its machine or its page: while
it was away, another may have been promoted.

Used from the event loop's thread."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import trio

from fusejournal.errors import FusejournalError
from fusejournal.replication.common_ancestor import first_error
from fusejournal.replication.local_node import LocalNode
from fusejournal.replication.peers import Peer
from fusejournal.types import Reign
from fusejournal.wire.frames import Hello, Welcome
from fusejournal.wire.session import (
    FETCH,
    WORD,
    HandshakeState,
    RefusedError,
    check_asked,
    hello,
)
from fusejournal.wire.transport import connect

ASK_SECONDS: Final = 5.0
"""The time that a peer may take to answer: one that is away is not waited for."""


@dataclass(frozen=True)
class PeerAnswer:
    """The answer of one peer: ``welcome``, or else ``error`` says why there is none. ``is_refusal``
    is True for a peer that was reached and will not."""

    peer: str
    welcome: Welcome | None = None
    error: str = ""
    is_refusal: bool = False


def words_needed(nodes: int, mirrors: int, *, blocks: bool, has_lost: bool = False) -> int:
    """Returns of how many of *nodes*, the primary included, the word is needed so that who reigns
    now, and waits for *mirrors*, can acknowledge nothing more, and that no two nodes get it for one
    epoch. *blocks*: it waits for as long as it takes. One that does not is stopped by no other
    node: the word of all is needed, its own included. *has_lost*: who asks is one of the nodes that
    had acknowledged entries, and has lost some, so that another is needed in its place."""
    if not (blocks and mirrors):
        return nodes
    return max(nodes // 2 + 1, nodes - mirrors + has_lost)


async def ask_positions(local: LocalNode, me: HandshakeState) -> list[PeerAnswer]:
    """Returns what each peer of *local*, which greets as *me*, has. Cancelling is harmless."""
    # Not by a reign that it has asked words for: who gave another its word would not answer.
    asking = me._replace(fence=me.position.epoch, reign_node=0)
    return await _ask_all(local, me, hello(asking, FETCH))


async def ask_words(local: LocalNode, me: HandshakeState, reign: Reign) -> list[PeerAnswer]:
    """Returns the word of each peer for *reign*, or why it gives none. Cancelled, some may have
    been given."""
    return await _ask_all(local, me, hello(me, WORD, reign.epoch))


async def has_words(
    local: LocalNode,
    me: HandshakeState,
    reign: Reign,
    *,
    heard: Collection[str],
    has_lost: bool,
    report: Callable[[str], None],
) -> bool:
    """Ask for the words that the primary *local*, which greets as *me*, needs to begin *reign*.
    Returns True if mirrors enough have given theirs; also where it goes on without mirrors anyway,
    because then none of them is promoted without a person's word that this node is off.

    Args:
        local, me, reign: this node, what it greets with, and the reign that it would begin.
        heard: the peers of which it is known what they hold, and whose words count.
        has_lost: entries that this node had acknowledged may be gone from it.
        report: is called with a line that says what is lacking.

    Cancelled, some words may have been given."""
    config = local.config
    if not config.mirrors or config.on_timeout != "block":
        return True
    # The book knows what is acknowledged as of now and then: who is shipped to may have more.
    voters = {peer.name for peer in local.book.list() if peer.address or peer.acked_seq}
    needed = words_needed(1 + len(voters), config.mirrors, blocks=True, has_lost=has_lost)
    answers = [one for one in await ask_words(local, me, reign) if one.peer in voters]
    words = 1 + sum(one.peer in heard and _has_no_more(one, me) for one in answers)
    if words < needed:
        silent = "".join(f"; {one.peer}: {one.error}" for one in answers if one.error)
        report(
            f"reign {reign} begins with the word of {needed} nodes, and {words} have given it: "
            f"waiting, because another may have been promoted meanwhile{silent}"
        )
        return False
    return True


def _has_no_more(answer: PeerAnswer, me: HandshakeState) -> bool:
    """Returns True if *answer* is a word, and whose it is holds nothing that *me* lacks: it may
    have followed a new primary since it was asked what it holds."""
    theirs, mine = answer.welcome, me.position
    if theirs is None:
        return False
    return theirs.seq <= mine.seq and theirs.held_epoch <= mine.epoch


async def _ask_all(local: LocalNode, me: HandshakeState, greeting: Hello) -> list[PeerAnswer]:
    answers: list[PeerAnswer] = []

    async def ask(peer: Peer) -> None:
        answers.append(await _ask(local, peer, me, greeting))

    async with trio.open_nursery() as nursery:
        for peer in local.book.list():
            nursery.start_soon(ask, peer)
    return sorted(answers, key=lambda answer: answer.peer)


async def _ask(local: LocalNode, peer: Peer, me: HandshakeState, greeting: Hello) -> PeerAnswer:
    if peer.any_address is None:
        return PeerAnswer(peer.name, error="it is not known where it listens")
    try:
        with trio.fail_after(ASK_SECONDS):
            async with await connect(
                peer.any_address,
                local.identity,
                peer.certificate,
                insecure=local.insecure,
                timeout_seconds=ASK_SECONDS,
            ) as connection:
                await connection.send(greeting)
                return PeerAnswer(peer.name, check_asked(me, await connection.receive()))
    except* RefusedError as group:
        error, is_refusal = str(first_error(group)), True
    except* trio.TooSlowError:
        error, is_refusal = f"no answer within {ASK_SECONDS:g} s", False
    except* (FusejournalError, OSError) as group:
        error, is_refusal = str(first_error(group)), False
    return PeerAnswer(peer.name, error=error, is_refusal=is_refusal)
