"""The configuration file: TOML, every key known, every value checked. Immutable once loaded.

Sections and defaults::

    [volume]
    role = "primary"                    # or "mirror"; of a new volume: a promotion changes it later
    durability = "async"                # or "nfs": names and attributes wait for the flush, too;
                                        # or "strict": every change waits, before it is applied;
                                        # when unset: "nfs" while the volume is exported "sync"
    hold_seconds = 60.0                 # how long an exported volume's callers wait for a new layer
                                        # when theirs has died; 0: not at all
    options = []                        # of the mount: "ro", "nosuid", "nodev", "noexec", "sync",
                                        # "dirsync", "noatime" and the like
    access_times = "none"               # or "relatime": set when something is opened to be read
    open_backing = false                # make a volume even if others than root
                                        # can reach its backing around the layer

    [journal]
    segment_bytes = "64MiB"             # a segment is sealed at this size,
    segment_entries = 65536             # or with this many entries
    compress = true                     # compress sealed segments in the background
    compress_level = 3                  # zstd, 1 to 19
    flush_interval_seconds = 1.0        # the journal is flushed at least this often
    checkpoint_interval_seconds = 10.0  # so is the backing
    # keep_bytes = "64GiB"              # 'prune' lets go segments that a verified version stands
    # keep_days = 30.0                  # for, beyond so much, or older; both unset: none

    [replication]
    listen = "0.0.0.0:7710"             # where other nodes connect to; unset: where --listen
                                        # said last, if it did; "none": nowhere
    insecure = false                    # plain connections between root's nodes on this machine
    mirrors = 0                         # what waits for a flush also waits for so many mirrors,
    mirrors_timeout_seconds = 10.0      # and if they do not answer for so long,
    on_timeout = "degrade"              # goes on without them; or "block": waits on
    batch_bytes = "1MiB"                # entries are shipped when there are so many,
    batch_age_seconds = 0.02            # or have waited so long
    window_bytes = "16MiB"              # at most so much is sent and not acknowledged
    compress_level_max = 9              # zstd; the level follows the link
    keep_bytes = "64GiB"                # a peer further behind than this,
    keep_days = 30.0                    # or away for longer, needs a full copy
    take_back_seconds = 30.0            # after the system crashed, wait so long for peers that
                                        # may have entries which the journal lost,
    without_peers = "new-epoch"         # then go on without them; or "wait": until one answers
    take_back = "signed"                # of those entries, what this node has signed (but of peers
                                        # too old to keep signatures all); or "any"; or "never"
    # overrule = "7/00c0ffee00c0ffee"   # a reign that is none, as 'status' of a fenced primary
                                        # has it
    # begin_alone = "8/00c0ffee00c0ffee"  # a reign that this primary's start waits for votes for,
                                        # and may begin without: no other node was promoted

    [replication.peers]
    NAME = "ADDRESS:PORT"               # who the journal is shipped to; see 'peer' for more

    [branches]
    keep_bytes = "16GiB"                # what lost to another history is dropped beyond this, the
    keep_days = 90.0                    # oldest first, or after so many days of being mounted

    [versions]
    # every = "1h"                      # the layer has a version made so often, and
    # prune_every = "1d"                # has 'prune' done; unset: only by command
    made_by = "any"                     # or "primary", "mirror": only while this node is that
    keep_last = 0                       # 'prune' keeps the newest so many versions,
    keep_hourly = 0                     # the newest one of each of the last so many hours,
    keep_daily = 0                      # days, weeks, months and years that have one, and what is
    keep_weekly = 0                     # protected or has a name; all of them 0: every version
    keep_monthly = 0
    keep_yearly = 0

    [store]                             # of versions, where it is s3://, gs:// or az://
    uploads = 4                         # objects under way at a time
    # upload_bytes_per_second = "4MiB"  # on average; unset: as fast as it goes
    # download_bytes_per_second = "4MiB"
    request_seconds = 120.0             # a request that takes longer has failed
    retry_seconds = 60.0                # failed requests are tried again for so long

    [store.options]
    KEY = "VALUE"                       # endpoint, region, credentials and the like: see
                                        # the store's own settings in MANUAL.md

    [metrics]
    listen = "127.0.0.1:7711"           # Prometheus reads them there; unset: nowhere

    [alerts]                            # of consoles; their agent reads this at each look
    lag_seconds = 60.0                  # a mirror that is further behind,
    silent_seconds = 60.0               # or hears nothing of its primary for longer;
    free_bytes = "1GiB"                 # less left on the disk with the journal,
    free_share = 0.05                   # or a smaller share of it,
    backing_free_bytes = "1GiB"         # and less left in the backing

    [hooks]
    before = []                         # programs, each with its arguments, that are called before
    after = []                          # and after a change of the role, and at each start
    # fence = "/usr/local/sbin/off"     # makes sure that an old primary is off
    timeout_seconds = 30.0              # a program that takes longer has failed

    [log]
    level = "warning"

Without a file given, a volume's configuration is /etc/fusejournal/NAME.toml, if that is there.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fusejournal.config_values import Bounds, Parsed, ValueRefusedError, checked, known_keys
from fusejournal.errors import ConfigError, UsageError

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _parse_bytes(value: Any) -> Any:
    match = re.fullmatch(r"(\d+) ?([A-Za-z]*)", value) if isinstance(value, str) else None
    if match is None:
        return value
    if match[2] not in _UNITS:
        raise ValueError(f"the unit {match[2]!r} is none of B, KiB, MiB, GiB, TiB")
    return int(match[1]) * _UNITS[match[2]]


def parse_size(text: str) -> int:
    """Returns the bytes that a person means by *text*, such as "64MiB". Raises UsageError."""
    try:
        found = _parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from None
    if not isinstance(found, int):
        raise UsageError(f"{text!r} is no size: say it as 64MiB")
    return found


Bytes = Annotated[int, Parsed(_parse_bytes)]

_BYTES_MAX = 1 << 60
_DAYS_MAX = 1_000_000
"""More of either says no more than that there is no end, which is better left unset."""

_SPANS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _parse_span(value: Any) -> Any:
    match = re.fullmatch(r"(\d+) ?([a-z]+)", value) if isinstance(value, str) else None
    if match is None or match[2] not in _SPANS:
        raise ValueError(f"{value!r} is no span of time: say it as 30min, 1h, 1d (s, min, h, d, w)")
    return float(min(int(match[1]) * _SPANS[match[2]], _BYTES_MAX))


_SECONDS_LEAST = 0.001
"""Less would have a layer do nothing else, or every request be late."""
_YEAR_SECONDS = 366 * 86_400
SpanSeconds = Annotated[float, Parsed(_parse_span), Bounds(1, _YEAR_SECONDS)]
"""A span of time, in seconds."""


_NONE: Mapping[str, str] = {}


class JournalConfig(NamedTuple):
    """The journal: how it is written and kept."""

    segment_bytes: Annotated[Bytes, Bounds(1 << 16, 4 << 30)] = 64 << 20
    segment_entries: Annotated[int, Bounds(256, 1 << 22)] = 1 << 16
    compress: bool = True
    compress_level: Annotated[int, Bounds(1, 19)] = 3
    flush_interval_seconds: Annotated[float, Bounds(_SECONDS_LEAST, 60)] = 1.0
    checkpoint_interval_seconds: Annotated[float, Bounds(_SECONDS_LEAST, 3600)] = 10.0
    keep_bytes: Annotated[Bytes, Bounds(0, _BYTES_MAX)] | None = None
    keep_days: Annotated[float, Bounds(0, _DAYS_MAX)] | None = None


MountFlag = Literal[
    "ro", "nosuid", "nodev", "noexec", "sync", "dirsync",
    "noatime", "nodiratime", "relatime", "strictatime", "lazytime",
]  # fmt: skip
"""The options of a mount that the kernel has flags for, whatever the file system."""


class VolumeConfig(NamedTuple):
    """The promises to callers, and the mount, unless the command line adds to it."""

    role: Literal["primary", "mirror"] | None = None
    durability: Literal["async", "nfs", "strict"] | None = None
    hold_seconds: Annotated[float, Bounds(0, 86400)] = 60.0
    options: tuple[MountFlag, ...] = ()
    access_times: Literal["none", "relatime"] = "none"
    open_backing: bool = False


class ReplicationConfig(NamedTuple):
    """The peers that the journal is shipped to and taken from, and how."""

    listen: str | None = None
    insecure: bool = False
    mirrors: Annotated[int, Bounds(0, 64)] = 0
    mirrors_timeout_seconds: Annotated[float, Bounds(_SECONDS_LEAST, 86400)] = 10.0
    on_timeout: Literal["degrade", "block"] = "degrade"
    batch_bytes: Annotated[Bytes, Bounds(4096, 16 << 20)] = 1 << 20
    batch_age_seconds: Annotated[float, Bounds(0, 60)] = 0.02
    window_bytes: Annotated[Bytes, Bounds(1 << 16, 1 << 30)] = 16 << 20
    compress_level_max: Annotated[int, Bounds(1, 19)] = 9
    keep_bytes: Annotated[Bytes, Bounds(1 << 20, _BYTES_MAX)] = 64 << 30
    keep_days: Annotated[float, Bounds(above=0)] = 30.0
    take_back_seconds: Annotated[float, Bounds(0, 86400)] = 30.0
    without_peers: Literal["new-epoch", "wait"] = "new-epoch"
    take_back: Literal["signed", "any", "never"] = "signed"
    overrule: str | None = None
    begin_alone: str | None = None
    peers: Mapping[str, str] = _NONE


class BranchesConfig(NamedTuple):
    """The bounds of what is kept of histories that lost."""

    keep_bytes: Annotated[Bytes, Bounds(0, _BYTES_MAX)] = 16 << 30
    keep_days: Annotated[float, Bounds(most=_DAYS_MAX, above=0)] = 90.0


_Count = Annotated[int, Bounds(0, 1 << 20)]


class VersionsConfig(NamedTuple):
    """The schedule by which the layer has versions made and pruned (node/version_schedule.py), and
    the policy by which they are kept (versions/policy.py)."""

    every: SpanSeconds | None = None
    prune_every: SpanSeconds | None = None
    made_by: Literal["any", "primary", "mirror"] = "any"
    keep_last: _Count = 0
    keep_hourly: _Count = 0
    keep_daily: _Count = 0
    keep_weekly: _Count = 0
    keep_monthly: _Count = 0
    keep_yearly: _Count = 0


class StoreConfig(NamedTuple):
    """The dealings with a store of versions that is not a directory (objects/remote.py)."""

    uploads: Annotated[int, Bounds(1, 64)] = 4
    upload_bytes_per_second: Annotated[Bytes, Bounds(1024, _BYTES_MAX)] | None = None
    download_bytes_per_second: Annotated[Bytes, Bounds(1024, _BYTES_MAX)] | None = None
    request_seconds: Annotated[float, Bounds(_SECONDS_LEAST, 3600)] = 120.0
    retry_seconds: Annotated[float, Bounds(0, 86400)] = 60.0
    options: Mapping[str, str] = _NONE


class MetricsConfig(NamedTuple):
    """The address at which the metrics can be read."""

    listen: str | None = None


class AlertsConfig(NamedTuple):
    """The figures from which on a console has an alert (agent/problems.py)."""

    lag_seconds: Annotated[float, Bounds(1, _YEAR_SECONDS)] = 60.0
    silent_seconds: Annotated[float, Bounds(1, _YEAR_SECONDS)] = 60.0
    free_bytes: Annotated[Bytes, Bounds(0, _BYTES_MAX)] = 1 << 30
    free_share: Annotated[float, Bounds(0, 1)] = 0.05
    backing_free_bytes: Annotated[Bytes, Bounds(0, _BYTES_MAX)] = 1 << 30


class HooksConfig(NamedTuple):
    """The programs that are called around a change of the role (node/hooks.py)."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    fence: str | None = None
    timeout_seconds: Annotated[float, Bounds(_SECONDS_LEAST, 3600)] = 30.0


class LogConfig(NamedTuple):
    """The layer's own log."""

    level: Literal["debug", "info", "warning", "error"] = "warning"


class Config(NamedTuple):
    """The whole file."""

    volume: VolumeConfig = VolumeConfig()
    journal: JournalConfig = JournalConfig()
    replication: ReplicationConfig = ReplicationConfig()
    branches: BranchesConfig = BranchesConfig()
    versions: VersionsConfig = VersionsConfig()
    store: StoreConfig = StoreConfig()
    metrics: MetricsConfig = MetricsConfig()
    alerts: AlertsConfig = AlertsConfig()
    hooks: HooksConfig = HooksConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Config":
        """Returns the configuration that the tables *raw* are, as ``tomllib`` gives them. Raises
        ValueRefusedError."""
        return checked(cls, raw)


def config_root() -> Path:
    """Returns the directory of the configurations of volumes."""
    return Path(os.environ.get("FUSEJOURNAL_CONFIG_ROOT", "/etc/fusejournal"))


def find_config(name: str) -> Path | None:
    """Returns the configuration file of the volume *name* where no other was named, if there is
    one."""
    path = config_root() / f"{name}.toml"
    return path if os.path.lexists(path) else None


def load_config(path: Path | None) -> Config:
    """Returns the configuration in *path*, or the defaults; addresses are not looked at. Raises
    ConfigError, one line naming what is wrong."""
    if path is None:
        return Config()
    # Only here: most volumes have no file.
    import tomllib

    try:
        return Config.of(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path}: too deep") from None
    except ValueRefusedError as error:
        where = ".".join(error.keys)
        if error.is_unknown:
            raise ConfigError(f"{path}: unknown key {where!r}{_nearest(where)}") from None
        raise ConfigError(f"{path}: {where}: {error.reason}") from None
    except ValueError as error:  # not UTF-8, no TOML, or a number of too many digits
        raise ConfigError(f"{path}: not TOML: {error}") from None


def _nearest(text: str) -> str:
    """Returns a hint at the known key that is most like the unknown one."""
    known = known_keys(Config)
    by_last = {key.rpartition(".")[2]: key for key in known}
    # Only here: it takes its time to load.
    from difflib import get_close_matches

    near = get_close_matches(text, known, 1) or [
        by_last[word] for word in get_close_matches(text.rpartition(".")[2], list(by_last), 1)
    ]
    return f"; did you mean {near[0]!r}?" if near else ""
