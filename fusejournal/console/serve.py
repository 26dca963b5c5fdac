"""The console's process: Hypercorn on trio, with the application of app.py.

It listens on the loopback unless it has a certificate: then anywhere, by TLS. It holds no volume
and needs no right but to its own directory; what it shows it asks of agents."""

import logging
import signal
import socket
import ssl
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.trio import serve

from fusejournal.address import Address
from fusejournal.console.agents import AgentBook, Agents
from fusejournal.console.alerts import Alerts
from fusejournal.console.app import ConsoleParts, make_app
from fusejournal.console.audit import Audit
from fusejournal.console.channels import channels_file, load_channels
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen
from fusejournal.console.place import console_directory, console_identity
from fusejournal.console.tokens import TokenBook
from fusejournal.console.users import UserBook
from fusejournal.console.watch import Watch
from fusejournal.errors import ListenError, UsageError
from fusejournal.replication.common_ancestor import first_error

_GRACE_SECONDS = 2.0
_HEADER_SECONDS = 5.0
"""The time that a connection may be without a whole request's headers; as the last request ends,
too."""
_HANDSHAKE_SECONDS = 10.0
_UNREAD_SECONDS = 120.0
"""The time after which the kernel ends the connection of a client that reads nothing of what it is
sent, or is gone: Hypercorn's sending to it cannot be cancelled."""


class _ConsoleConfig(HypercornConfig):  # type: ignore[misc]  # it has no types
    """Hypercorn's configuration, and what its sockets have besides."""

    def create_sockets(self) -> Sockets:
        """Returns the sockets that listen. What they accept inherits the option. Source: tcp(7)."""
        made = super().create_sockets()
        for one in (*made.secure_sockets, *made.insecure_sockets):
            one.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * _UNREAD_SECONDS)
            )
        return made


def is_loopback(host: str) -> bool:
    """Returns True if only this machine can reach what listens on *host*."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def run_console(
    address: Address,
    certificate: Path | None,
    key: Path | None,
    *,
    own_certificate: bool,
    ready: Callable[[str, str], None],
) -> None:
    """Runs the console until SIGTERM or SIGINT.

    Args:
        address: where it listens; other than on the loopback only with a certificate.
        certificate, key: files in PEM, both or none.
        own_certificate: use the console's own one, which it signed itself.
        ready: called, once it listens, with the page's address and, with TLS, the fingerprint of
            the console's own certificate (or "").

    Raises UsageError, ListenError, OSError."""
    if (certificate is None) != (key is None):
        raise UsageError("give --certificate and --key together")
    directory = console_directory()
    identity = console_identity(directory)
    fingerprint = ""
    if own_certificate and certificate is None:
        certificate, key = identity.certificate_path, identity.key_path
        fingerprint = identity.fingerprint
    if certificate is None and not is_loopback(address.host):
        raise UsageError(
            f"{address}: passwords and names of files would go over the network for all to read: "
            "listen on 127.0.0.1, or give --tls, or --certificate and --key"
        )
    agents = Agents(AgentBook(directory / "agents.json"), identity)
    alerts = Alerts(directory / "alerts.json")
    delivery = AlertDelivery(load_channels(channels_file()), directory / "told.json")
    last_seen = LastSeen(directory / "seen.json")
    config = _configuration(address, certificate, key)

    async def run() -> None:
        stopping = trio.Event()
        parts = ConsoleParts(
            agents=agents,
            users=UserBook(directory / "users.json"),
            tokens=TokenBook(directory / "tokens.json"),
            audit=Audit(directory / "audit.jsonl"),
            watch=Watch(agents, alerts, delivery, last_seen),
            is_tls=certificate is not None,
            stopping=stopping,
        )
        await _serve(config, parts, address, fingerprint, ready)

    try:
        trio.run(run)
    except BaseExceptionGroup as group:
        error = first_error(group)
        if not isinstance(error, OSError):
            raise
        raise ListenError(address, (error.strerror or str(error)).lower()) from None


async def _serve(
    config: HypercornConfig,
    parts: ConsoleParts,
    address: Address,
    fingerprint: str,
    ready: Callable[[str, str], None],
) -> None:
    scheme = "https" if parts.is_tls else "http"
    async with trio.open_nursery() as nursery:
        watching = await nursery.start(parts.watch.run)
        names: set[str] = set()
        app = make_app(parts, names)
        bound = await nursery.start(
            partial(serve, app, config, shutdown_trigger=parts.stopping.wait)
        )
        port = int(str(bound[0]).rpartition(":")[2])
        if not parts.is_tls:
            names |= {f"{host}:{port}" for host in ("localhost", "127.0.0.1", "[::1]")}
            names.add(str(Address(address.host, port)))
        host = address.host or "localhost"
        ready(f"{scheme}://{Address(host, port)}/", fingerprint)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                parts.stopping.set()
                watching.cancel()
                return


def _configuration(address: Address, certificate: Path | None, key: Path | None) -> HypercornConfig:
    config = _ConsoleConfig()
    config.bind = [str(Address(address.host or "0.0.0.0", address.port))]
    config.graceful_timeout = _GRACE_SECONDS
    config.keep_alive_timeout = _HEADER_SECONDS
    config.ssl_handshake_timeout = _HANDSHAKE_SECONDS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("fusejournal.console.http")
    config.loglevel = "WARNING"
    config.h11_max_incomplete_size = 64 << 10
    if certificate is not None:
        for path in (certificate, key):
            if path is not None and not path.is_file():
                raise UsageError(f"{path}: is no file")
        config.certfile, config.keyfile = str(certificate), str(key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            raise UsageError(f"{certificate}: TLS cannot use it with {key}: {error}") from None
    return config
