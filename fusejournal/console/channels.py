"""Channels by which alerts leave the console: a webhook, a mail, a command; and the file that says
which there are.

``/etc/fusejournal/console/alerts.toml``; each section is one channel, by kind and name::

    [webhook.NAME]
    url = "https://hooks.example/T0/B0"   # gets a POST of JSON
    headers = { authorization = "Bearer ..." }

    [mail.NAME]
    to = ["anna@example.org"]
    from = "fusejournal@example.org"
    host = "localhost"                    # the mail server
    port = 25
    security = "none"                     # or "starttls", or "tls"
    user = ""                             # where the server wants a login
    password = ""

    [command.NAME]
    argv = ["/usr/local/bin/page-me"]     # gets the JSON as its standard input

and in each of them, with their defaults::

    severity = "warning"                  # or "bad": only what puts users or data at risk now
    after_seconds = 30.0                  # what is gone by then is not told
    repeat_hours = 0.0                    # tell again what is still there after so long; 0: once
    resolved = true                       # tell also that a cause is gone
    per_hour = 20                         # messages; what there is more waits, and comes in one

Where it has commands, other users may neither change it nor the programs, nor files that arguments
name, nor the directories above them. Where it has secrets, no other user may be able to read it; a
webhook's URL is one, because a stranger who has it can post. So no error of a channel has a URL, a
header or a password in its words: they are shown on the page and logged."""

import http.client
import itertools
import json
import os
import shutil
import smtplib
import ssl
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusejournal.config import config_root
from fusejournal.disk.ownership import weak_place
from fusejournal.disk.process import WORKING_DIRECTORY
from fusejournal.errors import ConfigError, FusejournalError

_SECONDS: Final = 20.0
"""The time that a command, or one step of a webhook or a mail, may take."""
_LINES_MAX: Final = 50


class DeliveryError(FusejournalError):
    """A message that could not be delivered."""


class ChannelConfig(BaseModel):
    """Settings of all channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Literal["warning", "bad"] = "warning"
    after_seconds: Annotated[float, Field(ge=0, le=86400)] = 30.0
    repeat_hours: Annotated[float, Field(ge=0, le=8784)] = 0.0
    resolved: bool = True
    per_hour: Annotated[int, Field(ge=1, le=3600)] = 20


class WebhookConfig(ChannelConfig):
    """A POST of JSON."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    headers: dict[str, str] = {}


class MailConfig(ChannelConfig):
    """A mail by SMTP."""

    to: Annotated[list[str], Field(min_length=1)]
    sender: Annotated[str, Field(alias="from")]
    host: str = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] = 25
    security: Literal["none", "starttls", "tls"] = "none"
    user: str = ""
    password: str = ""


class CommandConfig(ChannelConfig):
    """A program."""

    argv: Annotated[list[Annotated[str, Field(pattern=r"^[^\x00]*$")]], Field(min_length=1)]


class _ChannelFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    webhook: dict[str, WebhookConfig] = {}
    mail: dict[str, MailConfig] = {}
    command: dict[str, CommandConfig] = {}


class AlertChannel(Protocol):
    """One channel."""

    @property
    def name(self) -> str:
        """Its kind and name."""

    @property
    def config(self) -> ChannelConfig:
        """Its settings."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Delivers *message*. Blocks, as long as the peer sends a byte now and then: the caller
        bounds the whole. Raises DeliveryError; the caller must take any other exception for one."""


class Webhook:
    """A webhook."""

    def __init__(self, name: str, config: WebhookConfig) -> None:
        self.name = f"webhook {name}"
        self.config = config

    def send(self, message: Mapping[str, Any]) -> None:
        """Posts *message*. Raises DeliveryError, also where the answer is no success."""
        headers = {"content-type": "application/json", "user-agent": "fusejournal"}
        try:
            request = urllib.request.Request(
                self.config.url,
                data=json.dumps(message).encode(),
                headers={**headers, **self.config.headers},
                method="POST",
            )
            opener = urllib.request.build_opener(_NoRedirects)
            with opener.open(request, timeout=_SECONDS) as answer:
                answer.read(1 << 10)
        except urllib.error.HTTPError as error:
            error.close()  # the connection, too
            raise DeliveryError(f"{self.name}: answered {error.code}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise DeliveryError(f"{self.name}: {reason}") from None
        except (http.client.InvalidURL, ValueError):
            # Its words may have the URL or a header in them.
            raise DeliveryError(f"{self.name}: its url or a header cannot be sent") from None
        except http.client.HTTPException as error:
            kind = type(error).__name__
            raise DeliveryError(f"{self.name}: the answer is no HTTP ({kind})") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the headers, and the secrets in them, elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follows none: the answer is an error, then."""
        return None


class Mail:
    """A mail."""

    def __init__(self, name: str, config: MailConfig) -> None:
        self.name = f"mail {name}"
        self.config = config

    def send(self, message: Mapping[str, Any]) -> None:
        """Mails *message*, as text; by TLS only to a server whose certificate is good for its name.
        Raises DeliveryError."""
        config = self.config
        try:
            mail = EmailMessage()
            mail["From"], mail["To"] = config.sender, ", ".join(config.to)
            mail["Subject"] = str(message["subject"])
            mail.set_content(str(message["text"]))
            # smtplib's own default of a context checks no certificate.
            checked = ssl.create_default_context
            kind: Callable[..., smtplib.SMTP] = smtplib.SMTP
            if config.security == "tls":
                kind = partial(smtplib.SMTP_SSL, context=checked())
            with kind(config.host, config.port, timeout=_SECONDS) as server:
                if config.security == "starttls":
                    server.starttls(context=checked())
                if config.user:
                    server.login(config.user, config.password)
                server.send_message(mail)
        except (OSError, smtplib.SMTPException) as error:
            raise DeliveryError(f"{self.name}: {error}") from None
        except ValueError:
            # smtplib sends user and password as ASCII alone.
            raise DeliveryError(
                f"{self.name}: its host, user, password or an address cannot be sent: "
                "is there one that is not ASCII?"
            ) from None


class AlertCommand:
    """A program."""

    def __init__(self, name: str, config: CommandConfig) -> None:
        self.name = f"command {name}"
        self.config = config

    def send(self, message: Mapping[str, Any]) -> None:
        """Runs it with *message* as its input. Raises DeliveryError, also where it fails."""
        try:
            done = subprocess.run(
                self.config.argv,
                input=json.dumps(message).encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_SECONDS,
                check=False,
                cwd=WORKING_DIRECTORY,
            )
        except subprocess.TimeoutExpired:
            raise DeliveryError(f"{self.name}: not done within {_SECONDS:g} s") from None
        except OSError as error:
            raise DeliveryError(f"{self.name}: {error.strerror}") from None
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace").strip()[-200:]
            raise DeliveryError(f"{self.name}: exit code {done.returncode} {words}".rstrip())


def channels_file() -> Path:
    """Returns the path of the file."""
    return config_root() / "console" / "alerts.toml"


def load_channels(path: Path) -> list[AlertChannel]:
    """Returns the channels of the file *path*; none where it is not there. Raises ConfigError, one
    line naming what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        file = _ChannelFile.model_validate(tomllib.loads(text))
        mode = path.stat().st_mode
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    secrets = [one.password for one in file.mail.values()]
    secrets += [value for one in file.webhook.values() for value in one.headers.values()]
    secrets += [one.url for one in file.webhook.values()]
    if any(secrets) and mode & 0o077:
        raise ConfigError(f"{path}: others can read secrets in it: chmod 600")
    if file.command:
        _check_unchanged_by_others(path, file.command.values())
    channels: list[AlertChannel] = []
    channels += [Webhook(name, one) for name, one in file.webhook.items()]
    channels += [Mail(name, one) for name, one in file.mail.items()]
    channels += [AlertCommand(name, one) for name, one in file.command.items()]
    return channels


def _check_unchanged_by_others(path: Path, commands: Iterable[CommandConfig]) -> None:
    """Raises ConfigError if other users than root and the console's own can change *path*, which
    says what is run, or a program of *commands*, or what an argument names: it may be a script, or
    a configuration. (One that is not there is told when it is needed.)"""
    found = [path]
    for one in commands:
        if (program := shutil.which(one.argv[0])) is not None:
            found.append(Path(program))
        named = (Path(WORKING_DIRECTORY, text) for text in one.argv[1:] if text)
        found += [place for place in named if place.is_file()]
    owners = {0, os.geteuid()}
    for used in found:
        try:
            weak = weak_place(used, owners=owners)
        except OSError as error:
            raise ConfigError(f"{used}: {error.strerror}") from None
        if weak is not None:
            raise ConfigError(
                f"{path}: {weak}: others can change it, and so what is run: chmod go-w"
            )


def message_of(raised: list[dict[str, Any]], resolved: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the message about alerts that came and that are gone: values, and the same in words,
    as ``subject`` and ``text``."""
    worst = "bad" if any(one["severity"] == "bad" for one in raised) else "warning"
    lines = [_line(one) for one in _in_turns(raised)] + [f"gone: {_line(one)}" for one in resolved]
    subject = lines[0].partition("\n")[0] if lines else "a try"
    if len(lines) > 1:
        subject += f" (and {len(lines) - 1} more)"
    more = [f"and {len(lines) - _LINES_MAX} more"] if len(lines) > _LINES_MAX else []
    return {
        "subject": f"fusejournal: {' '.join(subject.split())[:180]}",
        "text": "\n\n".join([*lines[:_LINES_MAX], *more]) or "a try: this channel works",
        "severity": worst if raised else "resolved" if resolved else "test",
        "alerts": raised,
        "resolved": resolved,
    }


def _in_turns(alerts: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields alerts of all agents in turns, so that one with very many hides no other's."""
    of_agents: dict[object, list[dict[str, Any]]] = {}
    for one in alerts:
        of_agents.setdefault(one.get("agent"), []).append(one)
    for turn in itertools.zip_longest(*of_agents.values()):
        yield from (one for one in turn if one is not None)


def _line(one: Mapping[str, Any]) -> str:
    place = f"{one['volume']} on {one['agent']}" if one.get("volume") else one.get("agent", "")
    advice = f"\nwhat to do: {one['advice']}" if one.get("advice") else ""
    # What users have named may be in it: no control characters, no lone surrogates.
    text = f"{place}: {one['words']}{advice}"
    clean = "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
    return clean.encode("utf-8", "replace").decode()
