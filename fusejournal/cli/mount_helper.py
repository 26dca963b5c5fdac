"""``mount -t fusejournal``: what mount(8) calls, by way of the script mount.fusejournal.

Owns the translation between mount(8) and ``fusejournal mount``: options that fstab has for others
are left out, those of a volume are passed on, and the exit codes are mount(8)'s. What is a
directory there is BACKING; ``fusejournal:NAME``, as /proc/mounts shows it, is a volume that was
mounted before.

``mount -a`` skips a line only if its source is that of a mount at its mountpoint, which for a
backing directory is never so. So a volume that is mounted there already is a success here.
``umount`` returns when the mount is gone and its layer may still be ending the journal: that is
waited for.

Source: mount(8), "EXTERNAL HELPERS", "EXIT STATUS" and "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import click

from fusejournal.admin.mount_options import (
    MountOptions,
    known_spec,
    mount_flags,
    new_spec,
    split_words,
)
from fusejournal.admin.remount import remount
from fusejournal.admin.start import start_unless_live
from fusejournal.cli import text
from fusejournal.cli.mount import specify
from fusejournal.cli.reporters import ConsoleReporter
from fusejournal.disk import mounts as mounts
from fusejournal.errors import FusejournalError, PrivilegeError, UsageError
from fusejournal.native import kernel
from fusejournal.node.registry import find_volume
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import load_state

_USAGE, _BUG, _INTERRUPTED, _FAILED = 1, 4, 8, 32

_IGNORED = frozenset(
    (
        "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner",
        "noowner", "group", "nogroup", "nofail", "_netdev", "mand", "nomand", "iversion",
        "noiversion", "silent", "loud", "remount",
    )
)  # fmt: skip
"""Words that say nothing to a layer. (What ``user`` implies, nosuid and so on, mount(8) adds
itself.)"""
_IGNORED_WITH_VALUE = re.compile(r"[xX]-.*|(comment|user|uhelper)=.*")
_IN_MOUNTINFO = re.compile(r"(user_id|group_id)=\d+|default_permissions|allow_other")
"""Words of the mount as it is, which a remount repeats."""
_CLONE_NEWNS = 0x00020000


@dataclass
class _Options:
    """The part of mount(8)'s -o that is for the volume."""

    name: str | None = None
    state: Path | None = None
    config: Path | None = None
    words: list[str] = field(default_factory=list)
    is_remount: bool = False

    @property
    def asked(self) -> MountOptions:
        """The same for ``fusejournal mount``."""
        return MountOptions(self.config, self.words)


class _Helper(click.Command):
    """Ends a wrong command line with mount(8)'s code."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        """End a wrong command line with mount(8)'s code for it."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            text.echo(f"mount.fusejournal: {error.format_message()}", err=True)
            raise click.exceptions.Exit(_USAGE) from None


@click.command("mount-helper", cls=_Helper, hidden=True, short_help="What mount(8) calls.")
@click.argument("source")
@click.argument("mountpoint", type=Path)  # click.Path would look at what is there
@click.option("-s", "sloppy", is_flag=True, help="Leave out options that are not known.")
@click.option("-f", "fake", is_flag=True, help="Check the command line; mount nothing.")
@click.option("-n", "_no_mtab", is_flag=True, help="Accepted; there is no mtab to write.")
@click.option("-v", "verbose", count=True, help="Say what is done.")
@click.option("-r", "read_only", is_flag=True, help="As -o ro.")
@click.option("-w", "_read_write", is_flag=True, help="Accepted; it is the default.")
@click.option("-N", "namespace", metavar="FILE", help="Mount in this namespace.")
@click.option("-o", "options", multiple=True, metavar="OPT,...", help="Options, fstab's as well.")
@click.option("-t", "_type", metavar="TYPE", help="Accepted; it is fusejournal.")
def mount_helper(
    source: str,
    mountpoint: Path,
    sloppy: bool,
    fake: bool,
    _no_mtab: bool,
    verbose: int,
    read_only: bool,
    _read_write: bool,
    namespace: str | None,
    options: tuple[str, ...],
    _type: str | None,
) -> int:
    """Mount for mount(8), in the background: SOURCE, a directory or fusejournal:NAME, at
    MOUNTPOINT.

    Options: name=NAME, state=DIR, config=FILE; those that every file system takes (ro, nosuid,
    nodev, noexec, sync, noatime, ...); remount, with those, for a volume that is mounted there.

    \b
    Examples, the second one a line of /etc/fstab:
      mount -t fusejournal /srv/data /srv/data -o name=data,nosuid
      /srv/data /srv/data fusejournal name=data,nosuid,nodev,nofail 0 0
      mount -o remount,ro /srv/data
    """
    try:
        chosen = _parse([*options, *(("ro",) if read_only else ())], sloppy)
        if fake:
            return 0
        if os.geteuid() != 0:
            raise PrivilegeError("mounting needs root: try sudo")
        if namespace is not None:
            _enter(namespace)
    except FusejournalError as error:
        return _fail(error, _USAGE)
    try:
        if chosen.is_remount:
            remount(mountpoint, chosen.words, specify)
            return 0
        spec = _spec(source, mountpoint, chosen)
        with ConsoleReporter() as reporter:
            is_new = start_unless_live(spec, chosen.asked, reporter)
    except FusejournalError as error:
        return _fail(error, _FAILED)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", _FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except Exception as error:
        if os.environ.get("FUSEJOURNAL_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (this is a bug)", _BUG)
    if verbose:
        done = f"mounted, volume {spec.name}" if is_new else "was mounted already"
        text.echo(f"mount.fusejournal: {mountpoint}: {done}")
    return 0


def _fail(error: FusejournalError | str, code: int) -> int:
    text.echo(f"mount.fusejournal: {error}", err=True)
    return code


def _is_ignored(word: str, is_remount: bool) -> bool:
    if is_remount and (word == "rw" or _IN_MOUNTINFO.fullmatch(word)):
        return word != "rw"  # which it may not be
    return word in _IGNORED or _IGNORED_WITH_VALUE.fullmatch(word) is not None


def _parse(options: list[str], sloppy: bool) -> _Options:
    """Raises UsageError for what is not known, unless *sloppy*."""
    words = split_words(options)
    chosen = _Options(is_remount="remount" in words)
    for word in words:
        key, _, value = word.partition("=")
        if _is_ignored(word, chosen.is_remount):
            continue
        if key in ("name", "state", "config"):
            if not value:
                raise UsageError(f"the option {key!r} needs a value: {key}=...")
            setattr(chosen, key, value if key == "name" else Path(value))
        else:
            try:
                mount_flags((), [word])
            except UsageError:
                if not sloppy:
                    raise UsageError(
                        f"unknown mount option {word!r}: name=, state=, config=, and what every "
                        "file system takes (ro, nosuid, nodev, noexec, sync, noatime, ...) are "
                        "known"
                    ) from None
            else:
                chosen.words.append(word)
    return chosen


def _enter(namespace: str) -> None:
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(fd, _CLONE_NEWNS)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"namespace {namespace}: {error.strerror}") from None


def _spec(source: str, mountpoint: Path, chosen: _Options) -> MountSpec:
    kind, colon, name = source.partition(":")
    if kind != "fusejournal" or not colon:
        return new_spec(Path(source), mountpoint, chosen.name, chosen.state, chosen.asked)
    if chosen.name not in (None, name):
        raise UsageError(f"{source}: is volume {name}, not {chosen.name}")
    volume = load_state(chosen.state.absolute()) if chosen.state else find_volume(name)
    if volume.name != name:
        raise UsageError(f"{volume.directory} is the state of volume {volume.name}, not of {name}")
    return known_spec(volume, mountpoint, chosen.asked)
