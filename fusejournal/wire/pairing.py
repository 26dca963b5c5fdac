"""Pairing: two nodes that do not know each other exchange certificates by a one-time code.

The admin of both reads the code on the one that listens and types it on the other. Each message is
a PairOffer with its sender's name, certificate and nonce::

    connector ->  listener   an empty proof
              <-             an empty proof
              ->             the connector's proof
              <-             the listener's proof

A proof is HMAC-SHA256, keyed with the code, over the role, both nonces, both names and both
certificates (:func:`proof_of`). So

- a stranger that does not know the code can make neither proof, and has one guess for each
  connection, of ``TRIES_MAX`` from each network; those of other networks do not count, or any
  stranger could keep two nodes from being paired, and at 80 bits no number of guesses is of use;
- a proof that was seen is of no use again: both nonces are new each time, and the role keeps one
  end's proof from being sent back to it;
- a man in the middle (nothing is known yet that TLS could verify) can pass the messages on, but
  change no certificate in them. What it sees would let it try codes by itself, and there are 2**80.
  That is why the code is random and this long, and why nothing slower than one HMAC is needed.

The listener keeps the other's certificate before it sends its own proof, so a connector that takes
the two for paired is right. If that proof is lost, the listener knows one peer too many, which
proved that it has the code.

Pure but for :func:`answer` and :func:`ask`, which talk over a connection.

Source: RFC 2104; https://www.crockford.com/base32.html."""

import hashlib
import hmac
import secrets
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NamedTuple

from fusejournal.address import check_peer_name
from fusejournal.errors import FusejournalError, PairingError, PeerLostError, UsageError, WireError
from fusejournal.wire.code_state import CodeState
from fusejournal.wire.connection import NONE_IS_OPEN, Connection
from fusejournal.wire.frames import PairOffer, Refusal
from fusejournal.wire.identity import Identity, fingerprint_of, normalize
from fusejournal.wire.log_limiter import network_of

CODE_SECONDS: Final = 600.0
TRIES_MAX: Final = 5
NONCE_BYTES: Final = 32

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_CHARS: Final = 16
_GROUP: Final = 4
_READ_AS: Final = str.maketrans("ILO", "110", "- ")
_LENGTH: Final = struct.Struct("<I")
_PURPOSE: Final = b"fusejournal pairing 1"
PAIRING_CONNECTS: Final = b"connects"
PAIRING_LISTENS: Final = b"listens"


class Paired(NamedTuple):
    """The other node, by what it proved."""

    node: str
    certificate: str
    fingerprint: str


# -- codes -----------------------------------------------------------------------------------------


def new_code() -> str:
    """Returns a code of 80 random bits, as people read it: ``7K3M-Q0ZV-...``."""
    code = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_CHARS))
    return "-".join(code[at : at + _GROUP] for at in range(0, _CODE_CHARS, _GROUP))


def parse_code(text: str) -> str:
    """Returns the code that *text* means, however it is grouped and whatever its case; characters
    that look alike are the same. Raises UsageError."""
    code = text.upper().translate(_READ_AS)
    if len(code) != _CODE_CHARS or not set(code) <= set(_ALPHABET):
        raise UsageError(
            f"this is no pairing code: one has {_CODE_CHARS} letters and digits, as "
            "'fusejournal pair VOLUME' shows it on the other node"
        )
    return code


class OpenCode:
    """A code that the other end may prove to know: for ten minutes, once, with few tries from each
    network. Times are seconds of any clock that only goes forward."""

    def __init__(self, code: str, now: float) -> None:
        self._code = parse_code(code)
        self._until = now + CODE_SECONDS
        self.is_used = False
        self._is_closed = False
        self._wrong_tries: Counter[str] = Counter()

    @property
    def wrong_tries(self) -> int:
        """The wrong tries of all networks together."""
        return self._wrong_tries.total()

    def tries_left(self, network: str) -> int:
        """Returns how many wrong tries *network* has left."""
        return TRIES_MAX - self._wrong_tries[network]

    def seconds_left(self, now: float) -> float:
        """Returns how long the code can still be used."""
        return max(0.0, self._until - now)

    def state(self, now: float) -> CodeState:
        """Returns whether it waits, is used or closed, or has expired."""
        if self.is_used:
            return CodeState.USED
        if self._is_closed:
            return CodeState.CLOSED
        return CodeState.EXPIRED if now >= self._until else CodeState.WAITING

    def is_waiting(self, now: float) -> bool:
        """Returns True if it can be used."""
        return self.state(now) is CodeState.WAITING

    def close(self) -> None:
        """Takes the code back."""
        self._is_closed = True

    def try_proof(self, offer: PairOffer, own: PairOffer, network: str, now: float) -> bool:
        """Returns True if *offer*, from *network*, proves that its sender knows the code, which is
        used up then. A wrong proof counts as a try. No proof is right for a code that is not
        waiting, or from a network without tries left."""
        if not self.is_waiting(now) or self.tries_left(network) <= 0:
            return False
        expected = proof_of(self._code, PAIRING_CONNECTS, offer, own)
        if not hmac.compare_digest(expected, offer.proof):
            self._wrong_tries[network] += 1
            return False
        self.is_used = True
        return True

    def prove(self, offer: PairOffer, own: PairOffer) -> bytes:
        """Returns the listener's own proof."""
        return proof_of(self._code, PAIRING_LISTENS, offer, own)


def proof_of(code: str, role: bytes, connects: PairOffer, listens: PairOffer) -> bytes:
    """Returns the proof that only a node that knows *code* can make, as *role*, about these two
    offers (their proofs aside). Each part is preceded by its length, so that no two lists of parts
    are the same bytes."""
    parts = [_PURPOSE, role]
    for offer in (connects, listens):
        parts += [offer.nonce, offer.node.encode(), offer.certificate.encode()]
    message = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    return hmac.new(code.encode(), message, hashlib.sha256).digest()


# -- talking ---------------------------------------------------------------------------------------


async def answer(
    connection: Connection,
    code: OpenCode | None,
    node: str,
    identity: Identity,
    now: Callable[[], float],
    keep: Callable[[Paired], Awaitable[None]],
) -> None:
    """Pairs as the listener: has the connector prove that it knows the code, has its certificate
    kept, and proves the same.

    Args:
        connection: to the connector.
        code: the code; None: no pairing is open.
        node, identity: name, and key and certificate, of this node.
        now: the clock by which the code ends.
        keep: keeps the connector's name and certificate; may raise FusejournalError.

    A connector that leaves before its first message is no error (it may have come to look at our
    certificate). Cancelling may leave a certificate kept, and the connector without the proof.
    Raises PairingError and WireError, once the reason was reported to the connector."""
    first = await connection.receive()
    if first is None:
        return
    network = network_of(connection.where.rpartition(":")[0].strip("[]"))
    if code is None or not code.is_waiting(now()) or code.tries_left(network) <= 0:
        # Before anything of it is parsed: strangers may say whatever they like.
        raise await _refuse(connection, "closed", NONE_IS_OPEN)
    theirs = check_offer(first, None)
    own = _offer(node, identity)
    await connection.send(own)
    second = await connection.receive()
    if second is None:
        raise PeerLostError(
            connection.where, f"{theirs.node} ended the pairing: what is wrong is shown there"
        )
    theirs = check_offer(second, theirs)
    # No await from here to the check: of two at once only one may use the code.
    if not code.try_proof(theirs, own, network, now()):
        is_last = code.tries_left(network) <= 0
        void = ", and void for this network: make a new one" if is_last else ""
        raise await _refuse(connection, "code", f"the code is wrong{void}")
    paired = Paired(theirs.node, theirs.certificate, fingerprint_of(theirs.certificate))
    try:
        await keep(paired)
    except FusejournalError as error:
        raise await _refuse(connection, "kept", str(error)) from None
    await connection.send(own._replace(proof=code.prove(theirs, own)))


async def ask(
    connection: Connection,
    code: str,
    node: str,
    identity: Identity,
    accept: Callable[[Paired], None],
) -> Paired:
    """Pairs as the connector: proves that it knows *code*, and has the listener prove the same.

    *accept* is called before, with what the listener says that it is, unproved, and may raise
    PairingError before the code is used up on it. Cancelling may leave this node's certificate kept
    on the listener. Raises UsageError for a text that is no code, PairingError when refused or when
    the listener does not know the code, WireError."""
    code = parse_code(code)
    own = _offer(node, identity)
    await connection.send(own)
    theirs = _check_answer(connection, await connection.receive(), None)
    unproved = Paired(theirs.node, theirs.certificate, fingerprint_of(theirs.certificate))
    accept(unproved)
    await connection.send(own._replace(proof=proof_of(code, PAIRING_CONNECTS, own, theirs)))
    theirs = _check_answer(connection, await connection.receive(), theirs)
    if not hmac.compare_digest(proof_of(code, PAIRING_LISTENS, own, theirs), theirs.proof):
        raise PairingError(
            f"{connection.where}: it does not know the code: another node, or one in the "
            "middle; check the address and make a new code"
        )
    return unproved


def _offer(node: str, identity: Identity) -> PairOffer:
    return PairOffer(node, identity.certificate, secrets.token_bytes(NONCE_BYTES), b"")


async def _refuse(connection: Connection, code: str, reason: str) -> PairingError:
    """Reports *reason* to the other end, and returns the error that has the same here."""
    with suppress(PeerLostError):
        await connection.send(Refusal(code, reason))
    return PairingError(f"{connection.where}: pairing refused: {reason}")


def _check_answer(connection: Connection, message: object, before: PairOffer | None) -> PairOffer:
    if isinstance(message, Refusal):
        raise PairingError(f"{connection.where}: pairing refused: {message.reason}")
    if message is None:
        raise PeerLostError(connection.where, "ended the connection while pairing")
    return check_offer(message, before)


def check_offer(message: object, before: PairOffer | None) -> PairOffer:
    """Returns *message* if it is an offer that can be: the first one without a proof, the second
    one as the first but with one. Raises WireError."""
    if not isinstance(message, PairOffer):
        raise WireError(f"pairing: not an offer but {type(message).__name__}")
    if before is not None:
        if message._replace(proof=b"") != before or not message.proof:
            raise WireError("pairing: the second offer is not as the first")
        return message
    try:
        check_peer_name(message.node)
        if normalize(message.certificate) != message.certificate:
            raise ValueError("the certificate has more to it")
    except (UsageError, ValueError) as error:
        raise WireError(f"pairing: {error}") from None
    if message.proof or len(message.nonce) != NONCE_BYTES:
        raise WireError("pairing: the first offer cannot be")
    return message
