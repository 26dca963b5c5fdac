"""Makes a mount's specification of what the user asked for, by options, places and configuration
file. Shared by ``fusejournal mount`` and the mount helper."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusejournal.address import parse_peer
from fusejournal.config import Config, find_config
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.disk.mount_flags import FLAGS, REVERSE, is_context, with_words
from fusejournal.disk.mounts import mounts
from fusejournal.errors import UntrustedStateError, UsageError, VolumeNotFoundError
from fusejournal.node.registry import check_name, default_name, find_volume, state_root
from fusejournal.node.spec import MountSpec, load_checked
from fusejournal.node.state_dir import VolumeState

_ADOPT = "adopt"
_DURABLE = frozenset({"sync", "dirsync"})


@dataclass(frozen=True)
class MountOptions:
    """The user's wishes beside the places: a configuration file, the words of -o, and what is to be
    otherwise than the file says (section, key and value)."""

    config: Path | None = None
    words: Sequence[str] = ()
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_arguments(self) -> list[str]:
        """The command line that says the same."""
        words = [f'"{word}"' if "," in word else word for word in self.words]
        arguments = [f"-o{','.join(words)}"] if words else []
        if self.config is not None:
            arguments.append(f"--config={self.config.absolute()}")
        volume, replication, metrics = (
            self.changes.get(section, {}) for section in ("volume", "replication", "metrics")
        )
        for key, value in volume.items():
            arguments.append("--open-backing" if key == "open_backing" else f"--{key}={value}")
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
    open_backing: bool = False,
) -> dict[str, dict[str, Any]]:
    """Returns what these options change in the configuration: section, key and value. Of an option
    that is None, False or empty nothing is passed.

    Args:
        role, durability, open_backing: of the section "volume".
        listen, insecure, mirrors: of the section "replication".
        peers: the same section's, as NAME=ADDRESS.
        metrics: the address of the section "metrics".

    Raises UsageError."""
    told: dict[str, dict[str, Any]] = {
        "volume": {"role": role, "durability": durability, "open_backing": open_backing or None},
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


def find_known(volume: str) -> VolumeState:
    """Returns the volume that was mounted before, as :func:`find_volume` does. Raises the same;
    VolumeNotFoundError says how a new one is mounted."""
    try:
        return find_volume(volume)
    except UntrustedStateError:
        raise
    except VolumeNotFoundError:
        raise VolumeNotFoundError(
            volume,
            " was mounted before (see 'status'): "
            "a new one needs BACKING and MOUNTPOINT, which may be the same directory",
        ) from None


def known_spec(volume: VolumeState, mountpoint: Path | None, asked: MountOptions) -> MountSpec:
    """The mount of *volume* where it was, or at *mountpoint*. Raises FusejournalError."""
    place = volume.mountpoint if mountpoint is None else _resolve(mountpoint)
    return _spec(volume.name, volume.directory, volume.backing, place, asked)


def _spec(
    name: str, state_dir: Path, backing: Path, mountpoint: Path, asked: MountOptions
) -> MountSpec:
    mount_flags((), asked.words)  # a slip in the command line is told before any in a file
    file = asked.config or find_config(name)
    loaded = _changed(load_checked(file), asked.changes)
    flags = mount_flags(loaded.volume.options, asked.words)
    if flags & _DURABLE and loaded.volume.durability != "strict":
        # The kernel has writes flushed by itself then; names wait in this mode.
        loaded = _changed(loaded, {"volume": {"durability": "nfs"}})
    return MountSpec(
        name=name,
        state_dir=state_dir,
        backing=backing,
        mountpoint=mountpoint,
        config=loaded,
        read_only="ro" in flags,
        mount_flags=flags - {"ro"},
        listen_asked=asked.changes.get("replication", {}).get("listen"),
        config_file=Path(os.path.abspath(file)) if file is not None else None,
        adopt=_ADOPT in asked.words,
    )


def _changed(config: Config, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    """*config* with what the command line says instead; peers come on top of those it has."""
    sections = {}
    for section, keys in changes.items():
        values = dict(keys)
        if "peers" in values:
            values["peers"] = {**config.replication.peers, **values["peers"]}
        sections[section] = getattr(config, section)._replace(**values)
    return config._replace(**sections)


def split_words(options: Iterable[str]) -> list[str]:
    """Returns the words of *options*, each with commas between them; a value in double quotes may
    have commas, and the quotes go."""
    words = (word for option in options for word in re.findall(r'(?:[^,"]|"[^"]*")+', option))
    return [word.replace('"', "") for word in words]


def mount_flags(configured: Iterable[str], words: Iterable[str]) -> frozenset[str]:
    """Returns the flags that the *configured* options and the *words* of -o come to: each word adds
    a flag or reverses it, the last one wins. Raises UsageError for a word that is not known."""
    words = list(words)
    for word in words:
        is_flag = word in FLAGS or word in REVERSE or is_context(word)
        if not is_flag and word not in ("defaults", _ADOPT):
            raise UsageError(
                f"unknown mount option {word!r}: {', '.join(FLAGS)}, "
                f"{', '.join(REVERSE)} and {_ADOPT} are known"
            )
    return with_words(with_words((), configured), words)


def _resolve(path: Path) -> Path:
    """Absolute, without symlinks; the last part is not touched: a dead mount may be there."""
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
    with suppress(OSError, *UNREADABLE_JSON):
        return str(json.loads((state / "volume.json").read_text())["name"])
    return None
