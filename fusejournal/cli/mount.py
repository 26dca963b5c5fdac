"""``fusejournal mount``: in the foreground, or in a process of its own that says when it is
ready. The process that waits for it never loads the node."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fusejournal.config import Config, find_config
from fusejournal.errors import (
    FusejournalError,
    MountError,
    PrivilegeError,
    UsageError,
    VolumeNotFoundError,
)
from fusejournal.layer.mount import mounts
from fusejournal.mountspec import MountSpec, Reporter, load_checked
from fusejournal.state import VolumeState, check_name, default_name, find_volume, state_root
from fusejournal.wire.address import parse_peer

_REPORT_FD = "FUSEJOURNAL_REPORT_FD"
_FLAGS = ("ro", "nosuid", "nodev", "noexec")
_REVERSE = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}
_PLAIN_PERIOD_SECONDS = 5.0


@click.command(short_help="Put a journaled layer over a directory.")
@click.argument(
    "places",
    nargs=-1,
    required=True,
    type=Path,  # click.Path looks at what is there: a mount that may be dead, or held
    metavar="{BACKING MOUNTPOINT | VOLUME}",
)
@click.option(
    "--name", help="The volume's name; from the mountpoint by default (/srv/data: srv-data)."
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="State directory  [default: /var/lib/fusejournal/NAME]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration in TOML  [default: /etc/fusejournal/NAME.toml, if it is there]",
)
@click.option(
    "-f",
    "--foreground",
    is_flag=True,
    help="Stay in the foreground; tells systemd when it is ready.",
)
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="OPT,...",
    help="ro, nosuid, nodev, noexec; or rw, suid, dev, exec against the configuration's.",
)
@click.option(
    "--role",
    type=click.Choice(["primary", "mirror"]),
    help="A mirror takes its changes from a primary and from nobody else. Of a new volume, for it "
    "is never changed  [default: primary]",
)
@click.option(
    "--listen",
    metavar="ADDR:PORT|none",
    help="Where other nodes connect to; a mirror needs it. Remembered for later mounts, where the "
    "configuration has nothing else, until 'none' is given.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME=ADDR:PORT",
    help="Ship the journal to this mirror (see 'peer' and 'pair'); may be repeated.",
)
@click.option(
    "--insecure", is_flag=True, help="Talk to other nodes without TLS, where both are on loopback."
)
@click.option(
    "--durability",
    type=click.Choice(["async", "nfs", "strict"]),
    help="What waits for the disk: fsync alone, names and attributes too, or every change "
    " [default: nfs while exported sync, else async]",
)
@click.option(
    "--mirrors",
    type=click.IntRange(0, 64),
    metavar="N",
    help="What waits for the disk also waits for N mirrors' disks  [default: 0]",
)
@click.option(
    "--metrics", metavar="ADDR:PORT", help="Where Prometheus reads metrics, on the loopback."
)
def mount(
    places: tuple[Path, ...],
    name: str | None,
    state: Path | None,
    config: Path | None,
    foreground: bool,
    options: tuple[str, ...],
    **replication: Any,
) -> None:
    """Mount a journaled layer over the directory BACKING at MOUNTPOINT; returns when it is live.

    Both may be the same directory: the layer then covers it in place. What BACKING already holds
    is imported into the journal at the first mount. From then on leave BACKING itself alone.

    A VOLUME that was mounted before (its name, mountpoint or state directory) is mounted again
    where it was.

    \b
    Examples:
      fusejournal mount /srv/data /srv/data
      fusejournal mount srv-data
      fusejournal mount /disk/homes /home --name homes
      fusejournal mount -f -o nosuid,nodev --config /etc/fusejournal/lab.toml /disk/lab /srv/lab
      fusejournal mount /disk/copy /srv/data --role mirror --listen 0.0.0.0:7710
      fusejournal mount /srv/data /srv/data --listen 0.0.0.0:7710 --peer east=10.0.0.2:7710
    """
    if len(places) > 2:
        raise click.UsageError("too many arguments: BACKING and MOUNTPOINT, or a VOLUME alone")
    if os.geteuid() != 0:
        raise PrivilegeError("mounting needs root: try sudo")
    words = [word for option in options for word in option.split(",") if word]
    asked = MountOptions(config, words, replication_options(**replication))
    try:
        if len(places) == 2:
            spec = new_spec(*places, name, state, asked)
        elif name is None and state is None:
            spec = known_spec(_find_known(str(places[0])), None, asked)
        else:
            raise UsageError(
                f"--name and --state need BACKING and MOUNTPOINT, not {str(places[0])!r} alone"
            )
        if not foreground:
            mount_in_background(spec, asked)
        elif _REPORT_FD in os.environ:
            _serve_for_parent(spec)
        else:
            _set_up_log(spec)
            with ConsoleReporter() as reporter:
                _serve(spec, reporter)
    except FusejournalError as error:
        if foreground:
            sd_notify(f"STATUS={error}")
        raise


def _find_known(volume: str) -> VolumeState:
    try:
        return find_volume(volume)
    except VolumeNotFoundError as error:
        error.args = (
            f"no volume {volume!r} was mounted before (see 'status'): "
            "a new one needs BACKING and MOUNTPOINT, which may be the same directory",
        )
        raise


@dataclass(frozen=True)
class MountOptions:
    """What the user asked for beside the places: a configuration file, the words of -o, and what is
    to be otherwise than the file says (section, key and value)."""

    config: Path | None = None
    words: Sequence[str] = ()
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_arguments(self) -> list[str]:
        """The command line that says the same."""
        arguments = [f"-o{','.join(self.words)}"] if self.words else []
        if self.config is not None:
            arguments.append(f"--config={self.config.absolute()}")
        volume, replication, metrics = (
            self.changes.get(section, {}) for section in ("volume", "replication", "metrics")
        )
        arguments += [f"--{key}={value}" for key, value in volume.items()]
        for key, value in replication.items():
            if key == "peers":
                arguments += [f"--peer={name}={address}" for name, address in value.items()]
            else:
                arguments.append("--insecure" if key == "insecure" else f"--{key}={value}")
        return arguments + [f"--metrics={value}" for value in metrics.values()]


def replication_options(
    role: str | None = None,
    listen: str | None = None,
    peers: Sequence[str] = (),
    insecure: bool = False,
    durability: str | None = None,
    mirrors: int | None = None,
    metrics: str | None = None,
) -> dict[str, dict[str, Any]]:
    """What these options change in the configuration. Raises UsageError."""
    told: dict[str, dict[str, Any]] = {
        "volume": {"role": role, "durability": durability},
        "replication": {
            "listen": listen,
            "insecure": insecure or None,
            "mirrors": mirrors,
            "peers": _peers(peers) or None,
        },
        "metrics": {"listen": metrics},
    }
    changes = {
        section: {key: value for key, value in keys.items() if value is not None}
        for section, keys in told.items()
    }
    return {section: keys for section, keys in changes.items() if keys}


def _peers(texts: Sequence[str]) -> dict[str, str]:
    peers: dict[str, str] = {}
    for name, address in map(parse_peer, texts):
        if name in peers:
            raise UsageError(f"--peer {name} is there twice: a peer has one address")
        peers[name] = str(address)
    return peers


def new_spec(
    backing: Path,
    mountpoint: Path,
    name: str | None,
    state: Path | None,
    asked: MountOptions,
) -> MountSpec:
    """The mount of *backing* at *mountpoint*, by whatever else the user said. Raises
    FusejournalError."""
    mountpoint = _resolve(mountpoint)
    name = check_name(name or (_name_in(state) if state else None) or default_name(mountpoint))
    return _spec(name, _resolve(state or state_root() / name), _resolve(backing), mountpoint, asked)


def known_spec(volume: VolumeState, mountpoint: Path | None, asked: MountOptions) -> MountSpec:
    """The mount of *volume* where it was, or at *mountpoint*. Raises FusejournalError."""
    place = volume.mountpoint if mountpoint is None else _resolve(mountpoint)
    return _spec(volume.name, volume.directory, volume.backing, place, asked)


def _spec(
    name: str, state_dir: Path, backing: Path, mountpoint: Path, asked: MountOptions
) -> MountSpec:
    mount_flags((), asked.words)  # a slip in the command line is told before any in a file
    loaded = _changed(load_checked(asked.config or find_config(name)), asked.changes)
    flags = mount_flags(loaded.volume.options, asked.words)
    return MountSpec(
        name=name,
        state_dir=state_dir,
        backing=backing,
        mountpoint=mountpoint,
        config=loaded,
        read_only="ro" in flags,
        mount_flags=flags - {"ro"},
        listen_asked=asked.changes.get("replication", {}).get("listen"),
    )


def _changed(config: Config, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    """*config* with what the command line says instead; peers come on top of those it has."""
    sections = {}
    for section, keys in changes.items():
        values = dict(keys)
        if "peers" in values:
            values["peers"] = {**config.replication.peers, **values["peers"]}
        sections[section] = getattr(config, section).model_copy(update=values)
    return config.model_copy(update=sections)


def mount_flags(configured: Iterable[str], words: Iterable[str]) -> frozenset[str]:
    """What the *configured* options and the *words* of -o come to: each word adds a flag or
    reverses it, the last one wins. Raises UsageError for a word that is not known."""
    flags = set(configured)
    for word in words:
        if word in _FLAGS:
            flags.add(word)
        elif word in _REVERSE:
            flags.discard(_REVERSE[word])
        elif word != "defaults":
            raise UsageError(
                f"unknown mount option {word!r}: {', '.join(_FLAGS)} and "
                f"{', '.join(_REVERSE)} are known"
            )
    return frozenset(flags)


def _resolve(path: Path) -> Path:
    """Absolute, without symlinks; the last part is not touched, for a dead mount may be there."""
    path = Path(os.path.abspath(path))
    if path.parent == path:
        return path
    parent = path.parent.resolve()
    path = parent / path.name
    if any(mount.mountpoint == path for mount in mounts()):
        return path  # asking it would wait for a layer, where there is none
    with suppress(OSError):
        if path.is_symlink():
            return path.resolve()
    return path


def _name_in(state: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((state / "volume.json").read_text())["name"])
    return None


def _set_up_log(spec: MountSpec) -> None:
    logging.basicConfig(
        level=spec.config.log.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def sd_notify(message: str) -> None:
    """Tell systemd, if it wants to know. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(message.encode())


class ConsoleReporter:
    """Shows progress as a bar on a terminal, as a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: Any = None
        self._stage = ""
        self._said = 0.0

    def __enter__(self) -> "ConsoleReporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_stage()

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """See Reporter."""
        if stage != self._stage:
            self._end_stage()
            self._stage = stage
            self._said = time.monotonic()
            if self._console.is_terminal:
                self._progress = _bar(unit, self._console)
                self._task = self._progress.add_task(stage, total=total)
                self._progress.start()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)
        elif time.monotonic() > self._said + _PLAIN_PERIOD_SECONDS:
            self._said = time.monotonic()
            told = f"{stage}: {done} of {total if total is not None else '?'} {unit}"
            click.echo(told, err=True)
            sd_notify(f"STATUS={told}")

    def warning(self, text: str) -> None:
        """See Reporter."""
        click.echo(f"fusejournal: warning: {text}", err=True)

    def ready(self) -> None:
        """See Reporter."""
        self._end_stage()
        sd_notify("READY=1")

    def _end_stage(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._stage = ""


def _bar(unit: str, console: Console) -> Progress:
    if unit == "bytes":
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class PipeReporter:
    """The background process's side: JSON lines to the process that started it, until it is
    ready."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sent = 0.0

    def progress(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """See Reporter; ten times a second are enough."""
        if time.monotonic() > self._sent + 0.1:
            self._sent = time.monotonic()
            self.send({"progress": [stage, done, total, unit]})

    def warning(self, text: str) -> None:
        """See Reporter."""
        self.send({"warning": text})

    def ready(self) -> None:
        """See Reporter. Nobody reads from here on."""
        self.send({"ready": True})
        os.close(self._fd)
        self._fd = -1

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; a parent that is gone does not matter."""
        if self._fd >= 0:
            with suppress(OSError):
                os.write(self._fd, json.dumps(message).encode() + b"\n")


def _serve(spec: MountSpec, reporter: Reporter) -> None:
    from fusejournal.node import serve

    serve(spec, reporter)


def _serve_for_parent(spec: MountSpec) -> None:
    reporter = PipeReporter(int(os.environ.pop(_REPORT_FD)))
    _set_up_log(spec)
    try:
        _serve(spec, reporter)
    except FusejournalError as error:
        reporter.send({"error": str(error), "exit_code": error.exit_code})
        raise
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        reporter.send({"error": f"{where}{error.strerror or error}", "exit_code": 1})
        raise


def mount_in_background(spec: MountSpec, asked: MountOptions) -> None:
    """Make the mount *spec*, which came of what was *asked*, in a process of its own; returns when
    it is live, having followed what that reports. Raises FusejournalError."""
    spec.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = spec.state_dir / "log"
    read_fd, write_fd = os.pipe()
    with open(log_path, "ab") as log_file:
        child = subprocess.Popen(
            _foreground_command(spec, asked),
            env={**os.environ, _REPORT_FD: str(write_fd)},
            pass_fds=[write_fd],
            # Neither the caller's directory nor its session is the layer's to hold.
            cwd="/",
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
        )
    os.close(write_fd)
    try:
        with ConsoleReporter() as reporter, open(read_fd, encoding="utf-8") as reports:
            for line in reports:
                report = json.loads(line)
                if "progress" in report:
                    reporter.progress(*report["progress"])
                elif "warning" in report:
                    reporter.warning(report["warning"])
                elif "error" in report:
                    child.wait()
                    failure = FusejournalError(report["error"])
                    failure.exit_code = report["exit_code"]
                    raise failure
                elif "ready" in report:
                    return
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    child.wait()
    lines = log_path.read_text(errors="replace").strip().splitlines()
    raise MountError(
        f"the layer ended with status {child.returncode}: "
        f"{lines[-1] if lines else 'no word'} (see {log_path})"
    )


def _foreground_command(spec: MountSpec, asked: MountOptions) -> list[str]:
    # -P: what lies in the current directory is no module of ours.
    command = [sys.executable, "-P", "-m", "fusejournal", "mount", "-f", f"--name={spec.name}"]
    command.append(f"--state={spec.state_dir}")
    command += asked.as_arguments()
    return [*command, "--", str(spec.backing), str(spec.mountpoint)]
