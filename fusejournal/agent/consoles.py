"""The consoles that an agent is paired with, and the code by which one comes to be.

A console is known by its certificate. ``pair-open`` of the control socket gives out a code, good
once and for ten minutes, of which there is one at a time; ``console pair`` on the console's machine
uses it up."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from fusejournal.agent.console_replies import (
    ConsoleCode,
    ConsoleList,
    ConsolePairingState,
    ConsoleRemoved,
)
from fusejournal.control.server import Command
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import read_object
from fusejournal.errors import FusejournalError, PairingError, UnknownPeerError
from fusejournal.wire import pairing
from fusejournal.wire.code_state import CodeState
from fusejournal.wire.connection import Connection
from fusejournal.wire.identity import Identity
from fusejournal.wire.pairing import OpenCode, Paired

log = logging.getLogger(__name__)


class ConsoleBook:
    """The consoles by name, each with its certificate (PEM)."""

    def __init__(self, path: Path) -> None:
        """Raises FusejournalError where *path* cannot be read."""
        self._path = path
        self._certificates: dict[str, str] = {}
        try:
            raw = read_object(path)["consoles"]
            if not all(isinstance(pem, str) for pem in raw.values()):
                raise ValueError("a certificate that is none")
            self._certificates = dict(raw)
        except FileNotFoundError:
            pass
        except (OSError, *UNREADABLE_JSON) as error:
            raise FusejournalError(
                f"{path}: cannot be read ({error}): remove it, and pair the consoles anew"
            ) from None

    @property
    def certificates(self) -> Mapping[str, str]:
        """The certificates by the consoles' names."""
        return self._certificates

    def put(self, name: str, certificate: str) -> None:
        """Keeps a console; one of the same name is replaced. Raises OSError: all is as before."""
        self._save({**self._certificates, name: certificate})

    def remove(self, name: str) -> None:
        """Forgets a console. Raises UnknownPeerError, OSError."""
        if name not in self._certificates:
            raise UnknownPeerError(name, ": no such console is paired")
        self._save({key: pem for key, pem in self._certificates.items() if key != name})

    def _save(self, certificates: dict[str, str]) -> None:
        content = json.dumps({"consoles": certificates}, indent=1).encode()
        write_atomically("agent.consoles", self._path, content, Outlives.MACHINE)
        self._certificates = certificates


class ConsolePairing:
    """Pairs consoles with this agent: both sides of the one code that is open."""

    def __init__(self, book: ConsoleBook, identity: Identity, node: str) -> None:
        self._book = book
        self._identity = identity
        self._node = node
        self._listen = ""
        self._code: OpenCode | None = None
        self._paired: Paired | None = None

    def listens_at(self, address: str) -> None:
        """Notes *address*, where the agent listens, to be shown with the code."""
        self._listen = address

    def is_open(self) -> bool:
        """Returns True while a console can pair."""
        return self._code is not None and self._code.is_waiting(trio.current_time())

    async def answer(self, connection: Connection) -> None:
        """Pairs with the console at the other end. Cancelling may leave it kept here, without the
        proof that it waits for. Raises PairingError, WireError."""
        await pairing.answer(
            connection, self._code, self._node, self._identity, trio.current_time, self._keep
        )

    async def _keep(self, paired: Paired) -> None:
        try:
            await trio.to_thread.run_sync(self._book.put, paired.node, paired.certificate)
        except OSError as error:
            raise PairingError(f"the console cannot be kept: {error.strerror}") from None
        self._paired = paired
        log.warning("paired with the console %s, %s", paired.node, paired.fingerprint)

    def commands(self) -> dict[str, Command]:
        """The commands of the control socket."""
        return {
            "pair-open": self._open,
            "pair-state": self._state,
            "console-list": self._list,
            "console-remove": self._remove,
        }

    async def _open(self, _: dict[str, Any]) -> dict[str, Any]:
        if self._code is not None:
            self._code.close()
        text = pairing.new_code()
        self._code, self._paired = OpenCode(text, trio.current_time()), None
        return ConsoleCode(
            code=text,
            node=self._node,
            listen=self._listen,
            fingerprint=self._identity.fingerprint,
            seconds_left=pairing.CODE_SECONDS,
        ).to_json()

    async def _state(self, _: dict[str, Any]) -> dict[str, Any]:
        now, paired = trio.current_time(), self._paired
        state = self._code.state(now) if self._code is not None else CodeState.CLOSED
        if state is not CodeState.USED or paired is None:
            return ConsolePairingState(state=state, console=None, fingerprint=None).to_json()
        return ConsolePairingState(
            state=CodeState.PAIRED, console=paired.node, fingerprint=paired.fingerprint
        ).to_json()

    async def _list(self, _: dict[str, Any]) -> dict[str, Any]:
        return ConsoleList(consoles=tuple(sorted(self._book.certificates))).to_json()

    async def _remove(self, request: dict[str, Any]) -> dict[str, Any]:
        name = str(request.get("name"))
        await trio.to_thread.run_sync(self._book.remove, name)
        return ConsoleRemoved(removed=name).to_json()
