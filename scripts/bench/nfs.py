"""NFS as users have it: a kernel nfsd that exports a volume beside one that exports a plain ext4 on
an equal disk, both on this machine, in one guest (tests/support/guest), in one run.

Three things are measured, each for NFSv3 and v4.2:

  rates      (the default) operations a second of a client, in rounds: each step is done on the
             layer, then on the plain export, then comes the next step. The table shows medians
             over the rounds, also of the layer's ratio to the plain export, beside its mark. The
             volume of a sync export has durability "nfs", that of an async one "async".
  --mixed    four processes that create, write, fsync, read, rename, unlink, list and chmod: how
             long each operation took, which took over a second, and what the layer and the
             machine did during the slowest.
  --account  which FUSE requests the kernel makes of the layer for each operation, and what they
             cost: "us" is the client's whole operation, "plain" that of the plain export,
             "handlers" the layer's own methods, "wait" the time spent waiting for the journal's
             flush, by a thread or in place, and "rest" what is neither, for each request: reading
             it, replying, and waking each other up. Times are first quartiles. The clock, two
             system calls a request, is taken off. nfsd closes files seconds later: a "release"
             counts where it falls.

A cold step begins after all caches of the guest were dropped; "stat" goes through a mount that
keeps no attributes, so that the server is asked, which has them. Before each step of rates and
account all is flushed, and the layer may finish its indexing and compressing. In the guest a system
call costs 8 to 30 us, by the machine and its day, and there is one processor, so ratios hold
elsewhere and rates do not. At --where, a disk shared with others makes what waits for it noisy; in
/dev/shm a flush costs nothing.

The account, as it was found (2026-11, Linux 6.1, NFSv4.2, async, microseconds in the guest):

  create + write  1695 of 227 plain: lookup, mknod, open, getattr x 3, getxattr, write, release
  rename           688 of  95 plain: lookup x 2, rename, getattr
  link             759 of 110 plain: getattr x 2, lookup, link
  mkdir            772 of 108 plain: lookup, mkdir, getattr
  unlink           715 of 114 plain: lookup, unlink, getattr, forget
  chmod            466 of 100 plain: lookup, setattr
  1 MiB written    each 512 KiB a getxattr, a write and a getattr; every byte goes to the disk twice

Each request costs 90 to 110 beside its handler (three system calls, and two changes of process):
with that alone four requests are four times the plain operation, so 0.3 of a plain async export is
out of reach for names, whatever the handlers do; of a sync export it is near. bindfs, which is
written in C and keeps no journal, gets 0.23 to 0.28 there for names (0.4 for utimens and rmdir) and
0.09 for large writes. What asks so often is the kernel: it looks a name up again after nfsd has
turned a handle into its file (fuse_get_dentry), asks for a directory's attributes after each change
in it, and for security.capability before each write that follows a getattr. None of the three can
be told to it in advance. Handlers that make something take 270 to 320, others 110 to 200: three to
nine system calls. In a sync export names wait some 140 more for the journal's flush, an fsync some
300."""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.support.guest.machine import Guest, GuestError, unavailable

_EXAMPLES = """examples:
  run nfs                               # three to four minutes on a quiet machine
  run nfs --version 4.2 --mode sync --rounds 5
  run nfs --mixed 120 --keep /tmp/mixed # what happened stays there in result.json
  run nfs --account --mode async
  run nfs --mode async --bindfs         # what FUSE alone costs, in C and without a journal
  taskset -c 0 scripts/bench/run nfs    # choose the processor that the guest runs on
"""
_MODES, _VERSIONS = ("sync", "async"), ("3", "4.2")
_MEMORY_MIB = 4 << 10
_DISK_MIB = 8 << 10
_MIXED_DISK_MIB = 24 << 10
_SLOW_SECONDS = 1.0
_BOOT_SECONDS = 120
_SLOWEST_SHOWN, _EVENTS_SHOWN, _BLOCKED_SHOWN = 5, 6, 4
_REQUESTS_MIN = 0.05
"""An operation; rarer ones belong to something else."""


def in_guest(options: dict[str, Any], out: Path, disk_mib: int, limit_seconds: float) -> Any:
    """The result of nfs_work with these options; what it says on the way goes to stderr. Raises
    GuestError."""
    command = [sys.executable, "-m", "scripts.bench.nfs_work", json.dumps(options)]
    end = time.monotonic() + limit_seconds
    said = 0
    with Guest(command, out, disk_mib=[disk_mib] * 4, memory_mib=_MEMORY_MIB) as guest:
        while guest.is_alive() and time.monotonic() < end:
            time.sleep(0.2)
            guest.nudge()
            if (out / "output").exists():
                text = (out / "output").read_bytes()
                sys.stderr.write(text[said:].decode(errors="replace"))
                sys.stderr.flush()
                said = len(text)
        if guest.wait(max(1.0, end - time.monotonic())):
            raise GuestError("the measurement failed, as is told above")
    return json.loads((out / "result.json").read_text())


# -- rates -----------------------------------------------------------------------------------------


def rated(result: dict[str, Any]) -> dict[str, Any]:
    """Returns *result* with medians, ratio and verdict."""
    for row in result["rows"]:
        rates: dict[str, list[float]] = row["rates"]
        for side, of_side in rates.items():
            row[side] = statistics.median(of_side)
            # Of each round, because all sides of one round had the same share of the machine.
            rounds = zip(of_side, rates["plain"], strict=True)
            row["ratio" if side == "layer" else f"{side}_ratio"] = statistics.median(
                one / plain for one, plain in rounds
            )
        row["ok"] = row["ratio"] >= row["mark"]
    return result


def show_rates(result: dict[str, Any]) -> None:
    """A table a version, the modes side by side."""
    rows = result["rows"]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    for version in dict.fromkeys(row["version"] for row in rows):
        bindfs = f"{'bindfs':>8}" if any("bindfs" in row for row in rows) else ""
        titles = "".join(f"  {mode + ' export':{35 + len(bindfs)}}" for mode in modes)
        print(f"\n{'NFSv' + version:31}{titles}".rstrip())
        head = f"  {'layer':>8}{'plain':>9}{'ratio':>7}{'mark':>5}{'':6}{bindfs}"
        print(f"{'':31}{head * len(modes)}".rstrip())
        for step in dict.fromkeys(row["step"] for row in rows):
            cells = [r for r in rows if r["version"] == version and r["step"] == step]
            line = f"{step:25}{cells[0]['unit']:6}"
            for row in cells:
                verdict = "OK" if row["ok"] else "below"
                line += f"  {row['layer']:8.0f}{row['plain']:9.0f}{row['ratio']:7.2f}"
                line += f"{row['mark']:5.1f} {verdict:5}"
                line += f"{row['bindfs_ratio']:8.2f}" if bindfs else ""
            print(line.rstrip())
    print(f"\n{sum(row['ok'] for row in rows)} of {len(rows)} marks are met")
    if rests := result["rests_seconds"]:
        print(f"after {len(rests)} steps the layer went on to index and compress, for "
              f"{statistics.median(rests):.1f} s (median)")  # fmt: skip


# -- the account -----------------------------------------------------------------------------------


def _times(count: float) -> str:
    return f"{count:.0f}" if count >= 10 else f"{count:.2g}"


def show_account(rows: list[dict[str, Any]]) -> None:
    """A table a mode and version."""
    title = ""
    for row in rows:
        if title != (title := f"{row['mode']} export, NFSv{row['version']}"):
            head = f"{'us':>8}{'plain':>8}{'handlers':>9}{'wait':>7}{'rest':>6}{'RPCs':>6}"
            print(f"\n{title:24}{head}  requests x us of each")
        number = sum(one["count"] for one in row["requests"].values())
        ours_us = row["handlers_us"] + row["wait_us"]
        rest = (row["us"] - row["plain_us"] - ours_us) / number if number else 0
        words = [
            f"{name} {_times(one['count'])} x {one['us']:.0f}"
            for name, one in row["requests"].items()
            if one["count"] >= _REQUESTS_MIN
        ]
        flushes = row["flushes"]
        if flushes["count"] >= _REQUESTS_MIN:
            words.append(
                f"flush {_times(flushes['count'])} x {flushes['us']:.0f}, "
                f"{_times(flushes['in_place'])} of them in place"
            )
        print(
            f"{row['step']:24}{row['us']:8.0f}{row['plain_us']:8.0f}{row['handlers_us']:9.0f}"
            f"{row['wait_us']:7.0f}{rest:6.0f}{row['rpcs']:6.1f}  {', '.join(words)}"
        )


# -- the mixed run ---------------------------------------------------------------------------------


def show_mixed(result: dict[str, Any]) -> None:
    """Latencies of both sides, what was slow, and what the layer did then."""
    layer, plain = result["layer"], result["plain"]
    head = f"{'count':>9}{'op/s':>8}{'p50':>8}{'p99':>8}{'max':>9}"
    print(f"\n{'times in ms':11}{'layer':>9}{'':35}{'plain':>9}\n{'':11}{head}  {head}")
    for label in layer["operations"]:
        line = f"{label:11}"
        for side in (layer, plain):
            one = side["operations"].get(label, {"count": 0, "p50": 0, "p99": 0, "max": 0})
            line += f"{one['count']:9}{one['count'] / side['seconds']:8.1f}"
            line += f"{one['p50'] * 1e3:8.1f}{one['p99'] * 1e3:8.1f}{one['max'] * 1e3:9.1f}  "
        print(line.rstrip())
    line = f"{'all':11}"
    for side in (layer, plain):
        count = sum(one["count"] for one in side["operations"].values())
        line += f"{count:9}{count / side['seconds']:8.1f}{'':27}"
    print(line.rstrip())
    for name, side in (("layer", layer), ("plain export", plain)):
        over = [one for one in side["slowest"] if one["seconds"] > _SLOW_SECONDS]
        verdict = "none (mark: none) OK" if not over else f"{len(over)} (mark: none) below"
        print(f"over {_SLOW_SECONDS:.0f} s on the {name}: {verdict}")
        for one in over[:20]:
            print(f"  {_slow(one)}")
    print("\nthe layer's time in all (nested, and threads beside each other), longest first")
    totals = sorted(layer["totals"].items(), key=lambda item: -item[1][1])
    for name, (count, seconds, longest) in totals[:20]:
        print(f"  {name:34}{count:9}{seconds:9.1f} s{seconds / count * 1e3:9.2f} ms, "
              f"at most {longest * 1e3:7.1f} ms")  # fmt: skip
    print("\nslowest on the layer (of those at the same time, one), and what went on")
    shown: list[tuple[float, float]] = []
    for one in layer["slowest"]:
        begin, end = one["at"], one["at"] + one["seconds"]
        if len(shown) < _SLOWEST_SHOWN and not any(b < end and begin < e for b, e in shown):
            shown.append((begin, end))
            print(f"  {_slow(one)}")
            for line in _meanwhile(layer, begin, end):
                print(f"      {line}")


def _slow(one: dict[str, Any]) -> str:
    return (
        f"{one['operation']} took {one['seconds']:.3f} s, {one['at']:.2f} s after the start, "
        f"client {one['client']} on v{one['version']}"
    )


def _meanwhile(layer: dict[str, Any], begin: float, end: float) -> list[str]:
    """The part of the trace and the samples between *begin* and *end*."""
    lines = []
    events = [e for e in layer["events"] if e["at"] < end and e["at"] + e["seconds"] > begin]
    for event in sorted(events, key=lambda event: -event["seconds"])[:_EVENTS_SHOWN]:
        where = ", in the event loop" if event["in_loop"] else ""
        lines.append(
            f"{event['name']}: {event['seconds']:.3f} s from {event['at'] - begin:+.3f} s on{where}"
        )
    around = [s for s in layer["samples"] if begin - 1.0 < s["at"] < end + 1.0]
    if states := sorted((s for s in around if "head_seq" in s), key=lambda sample: sample["at"]):
        words = [
            f"{word} {states[0][word]} to {states[-1][word]}"
            for word in ("head_seq", "durable_seq", "checkpoint_seq", "segments")
        ]
        slowest = max(sample["answer_seconds"] for sample in states)
        lines.append(f"status: {', '.join(words)}; answered within {slowest:.3f} s")
    used, blocked = Counter[str](), Counter[str]()
    for sample in around:
        used.update(sample.get("ticks", {}))
        blocked.update(sample.get("blocked", []))
    if used:
        words = [f"{name} {ticks / 100:.2f} s" for name, ticks in used.most_common(6)]
        lines.append(f"processor: {', '.join(words)}")
    for where, times in blocked.most_common(_BLOCKED_SHOWN):
        lines.append(f"blocked, seen {times} times: {where}")
    return lines


# -- the command line ------------------------------------------------------------------------------


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return int(text)


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return Path(text)


def _stop(*_: object) -> NoReturn:
    raise SystemExit("stopped")


def _arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run nfs",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--mixed", type=_positive, nargs="?", const=600, metavar="SECONDS",
                       help="a mixed run of so long (without a number: 600)")  # fmt: skip
    kinds.add_argument("--account", action="store_true", help="the FUSE requests of each operation")
    parser.add_argument("--mode", choices=_MODES, help="only such exports (--mixed: sync)")
    parser.add_argument("--version", choices=_VERSIONS, help="only this NFS version")
    parser.add_argument("--count", type=_positive, help="operations a step (400; --account: 100)")
    parser.add_argument("--rounds", type=_positive, default=3, help="of the rates (3)")
    parser.add_argument("--bindfs", action="store_true",
                        help="rates also of bindfs, a passthrough in C without a journal: the "
                        "last column is its ratio to the plain export")  # fmt: skip
    parser.add_argument("--plain-seconds", type=_positive, default=60, metavar="SECONDS",
                        help="of a mixed run on the plain export (60, or --mixed)")  # fmt: skip
    parser.add_argument("--where", type=_directory, default="/var/tmp", metavar="DIR",
                        help="where the guest's disks lie, some 10 GB (/var/tmp)")  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR",
                        help="keep what the guest leaves: output, traces, result")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    return parser.parse_args(arguments)


def main() -> None:
    options = _arguments()
    if reason := unavailable():
        sys.exit(f"run nfs: {reason}")
    signal.signal(signal.SIGTERM, _stop)
    what = "mixed" if options.mixed else "account" if options.account else "measure"
    modes = [options.mode] if options.mode else ["sync"] if options.mixed else list(_MODES)
    wanted = {
        "what": what,
        "modes": modes,
        "versions": [options.version] if options.version else list(_VERSIONS),
        "count": options.count or (100 if options.account else 400),
        "rounds": options.rounds,
        "bindfs": options.bindfs,
        "mixed": options.mixed,
        "plain_seconds": min(options.plain_seconds, options.mixed or 1),
    }
    if options.mixed:
        limit_seconds = 2 * _BOOT_SECONDS + options.mixed + wanted["plain_seconds"]
    else:
        limit_seconds = 2 * _BOOT_SECONDS + wanted["count"] * options.rounds
    wanted["limit_seconds"] = limit_seconds
    with tempfile.TemporaryDirectory(prefix="fusejournal-bench.", dir=options.where) as name:
        out = options.keep or Path(name)
        disk_mib = _MIXED_DISK_MIB if options.mixed else _DISK_MIB
        try:
            result = in_guest(wanted, out.resolve(), disk_mib, limit_seconds)
        except GuestError as error:
            sys.exit(f"run nfs: {error}")
        except KeyboardInterrupt:
            sys.exit("stopped")
    if what == "measure":
        result = rated(result)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show: dict[str, Callable[[Any], None]] = {
            "measure": show_rates,
            "account": show_account,
            "mixed": show_mixed,
        }
        show[what](result)
        print(f"load of the machine now: {os.getloadavg()[0]:.1f}; of this run alone it is 1")


if __name__ == "__main__":
    main()
