"""The command line of mount(8)'s helper as that of a volume's mount: options that fstab has for
others are left out, those of a volume are passed on. What is a directory is the backing;
``fusejournal:NAME``, as /proc/mounts shows it, is a volume that was mounted before.

Source: mount(8), "EXTERNAL HELPERS" and "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusejournal.admin.mount_options import (
    MountOptions,
    known_spec,
    mount_flags,
    new_spec,
    split_words,
)
from fusejournal.errors import UsageError
from fusejournal.native import kernel
from fusejournal.node.registry import find_volume
from fusejournal.node.spec import MountSpec
from fusejournal.node.state_dir import load_state

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
class HelperOptions:
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


def _is_ignored(word: str, is_remount: bool) -> bool:
    if is_remount and (word == "rw" or _IN_MOUNTINFO.fullmatch(word)):
        return word != "rw"  # which it may not be
    return word in _IGNORED or _IGNORED_WITH_VALUE.fullmatch(word) is not None


def parse_helper_options(options: Sequence[str], *, sloppy: bool) -> HelperOptions:
    """Returns the part of -o that is for the volume. Raises UsageError for what is not known,
    unless *sloppy*."""
    words = split_words(options)
    chosen = HelperOptions(is_remount="remount" in words)
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


def enter_mount_namespace(namespace: str) -> None:
    """Has this process be in the mount namespace that the file *namespace* stands for. Raises
    UsageError."""
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(fd, _CLONE_NEWNS)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"namespace {namespace}: {error.strerror}") from None


def helper_spec(source: str, mountpoint: Path, chosen: HelperOptions) -> MountSpec:
    """Returns the mount of *source* at *mountpoint*. Raises FusejournalError."""
    kind, colon, name = source.partition(":")
    if kind != "fusejournal" or not colon:
        return new_spec(Path(source), mountpoint, chosen.name, chosen.state, chosen.asked)
    if chosen.name not in (None, name):
        raise UsageError(f"{source}: is volume {name}, not {chosen.name}")
    volume = load_state(chosen.state.absolute()) if chosen.state else find_volume(name)
    if volume.name != name:
        raise UsageError(f"{volume.directory} is the state of volume {volume.name}, not of {name}")
    return known_spec(volume, mountpoint, chosen.asked)
