"""Channels of alerts against peers that answer nonsense or are not who they should be, and
settings that cannot be sent: each is an error of the channel, without a secret in its words."""

import contextlib
import datetime
import ipaddress
import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fusejournal.console.channels import (
    DeliveryError,
    Mail,
    MailConfig,
    Webhook,
    WebhookConfig,
    load_channels,
    message_of,
)
from fusejournal.errors import ConfigError


@contextmanager
def _peer(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A peer on the loopback that talks to each client by *talk*; its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                talk(self.request)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _webhook(url: str, **headers: str) -> Webhook:
    return Webhook("ops", WebhookConfig.model_validate({"url": url, "headers": headers}))


@pytest.mark.parametrize(
    "answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200]
)
def test_an_answer_that_is_no_http(answer: bytes) -> None:
    def talk(client: socket.socket) -> None:
        client.recv(1 << 16)
        client.sendall(answer)

    with _peer(talk) as port, pytest.raises(DeliveryError, match="webhook ops: the answer is no"):
        _webhook(f"http://127.0.0.1:{port}/").send(message_of([], []))


@pytest.mark.parametrize(
    ("url", "header"),
    [
        ("http://127.0.0.1:1/\x01secret", ""),
        ("http://127.0.0.1:secret/", ""),
        ("http://127.0.0.1:{port}/secret\xe4", ""),
        ("http://127.0.0.1:{port}/", "a\nsecret"),
    ],
)
def test_no_secret_of_a_webhook_is_in_its_error(url: str, header: str) -> None:
    headers = {"x-key": header} if header else {}
    with (
        _peer(lambda client: None) as port,
        pytest.raises(DeliveryError, match="its url or a header cannot be sent") as raised,
    ):
        _webhook(url.format(port=port), **headers).send(message_of([], []))
    assert "secret" not in str(raised.value)


def _certificate(directory: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "mail.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


class _MailPeer:
    """A mail server that takes a login and mails, by TLS where it has a certificate; it keeps the
    lines that it got."""

    def __init__(self, security: str, certificate: Path | None = None) -> None:
        self.lines: list[str] = []
        self._security = security
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)

    def talk(self, client: socket.socket) -> None:
        if self._security == "tls":
            client = self._context.wrap_socket(client, server_side=True)
        client.sendall(b"220 here\r\n")
        with contextlib.closing(client):
            self._answer_all(client)

    def _answer_all(self, client: socket.socket) -> None:
        while line := _line(client):
            self.lines.append(line)
            word = line[:4].upper()
            if word == "STAR":
                client.sendall(b"220 go on\r\n")
                with self._context.wrap_socket(client, server_side=True) as secured:
                    self._answer_all(secured)
            elif word == "EHLO":
                client.sendall(b"250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
            elif word == "AUTH":
                client.sendall(b"235 welcome\r\n")
            elif word == "DATA":
                client.sendall(b"354 go on\r\n")
                while _line(client) != ".":
                    pass
                client.sendall(b"250 taken\r\n")
            else:
                client.sendall(b"221 bye\r\n" if word == "QUIT" else b"250 ok\r\n")

    def has(self, word: str) -> bool:
        """Returns True if the client gave the command *word*."""
        return any(line.upper().startswith(word) for line in self.lines)


def _line(client: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n") and (byte := client.recv(1)):
        found += byte
    return found.decode().rstrip("\r\n")


def _mail(port: int, **config: Any) -> Mail:
    raw = {"to": ["a@b.example"], "from": "c@d.example", "host": "127.0.0.1", "port": port}
    raw |= {"user": "anna", "password": "p"}
    return Mail("admins", MailConfig.model_validate({**raw, **config}))


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_password_goes_only_to_a_server_that_is_trusted(
    security: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = _certificate(tmp_path)
    other = _MailPeer(security, certificate)
    with (
        _peer(other.talk) as port,
        pytest.raises(DeliveryError, match=r"mail admins: .*certificate verify failed"),
    ):
        _mail(port, security=security).send(message_of([], []))
    assert not other.has("AUTH")
    assert not other.has("DATA")

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    own = _MailPeer(security, certificate)
    with _peer(own.talk) as port:
        _mail(port, security=security).send(message_of([], []))
    assert own.has("AUTH PLAIN")
    assert own.has("DATA")


@pytest.mark.parametrize(
    "config", [{"password": "gehe\xefm"}, {"from": "a@b.example\nBcc: gehe\xefm"}]
)
def test_a_mail_that_cannot_be_sent(config: dict[str, Any]) -> None:
    server = _MailPeer("none")
    with (
        _peer(server.talk) as port,
        pytest.raises(DeliveryError, match=r"mail admins: .* cannot be sent") as raised,
    ):
        _mail(port, **config).send(message_of([], []))
    assert "gehe" not in str(raised.value)
    assert not server.has("DATA")


def test_the_url_of_a_webhook_is_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "alerts.toml"
    path.write_text('[webhook.ops]\nurl = "https://hooks.example/T0/B0"\n')
    os.chmod(path, 0o644)
    with pytest.raises(ConfigError, match="others can read secrets"):
        load_channels(path)
    os.chmod(path, 0o600)
    assert [one.name for one in load_channels(path)] == ["webhook ops"]
    path.write_text('[command.page]\nargv = ["/bin/true"]\n')
    os.chmod(path, 0o644)
    assert [one.name for one in load_channels(path)] == ["command page"]


def test_a_command_that_others_could_choose(tmp_path: Path) -> None:
    """It runs as the console's user: neither the file nor the program is to be another's."""
    program = tmp_path / "page-me"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    path = tmp_path / "alerts.toml"
    path.write_text(f'[command.page]\nargv = ["{program}"]\n')
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"page-me: others can change it"):
        load_channels(path)
    program.chmod(0o755)
    assert [one.name for one in load_channels(path)] == ["command page"]
    path.chmod(0o666)
    with pytest.raises(ConfigError, match=r"alerts.toml: others can change it"):
        load_channels(path)


def test_a_script_that_others_could_choose(tmp_path: Path) -> None:
    """A shell runs it as much as if it were the program."""
    script, path = tmp_path / "page-me.sh", tmp_path / "alerts.toml"
    script.write_text("true\n")
    script.chmod(0o666)
    path.write_text(f'[command.page]\nargv = ["/bin/sh", "{script}", "/dev/null", "{tmp_path}"]\n')
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"page-me.sh: others can change it"):
        load_channels(path)
    script.chmod(0o644)
    assert [one.name for one in load_channels(path)] == ["command page"]
    path.write_text('[command.page]\nargv = ["/bin/sh", "a\\u0000b"]\n')
    with pytest.raises(ConfigError, match=r"command.page.argv.1"):
        load_channels(path)
