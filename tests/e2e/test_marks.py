"""Marks: a point of a running volume that an admin named."""

import itertools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fusejournal.control.client import RemoteError, ask
from fusejournal.errors import (
    JournalError,
    JournalFailedError,
    JournalFullError,
    NoSuchMomentError,
    UsageError,
)
from tests.support.layer import Layer

pytestmark = pytest.mark.mount


def fails(layer: Layer, code: int, *arguments: str) -> str:
    """Run ``mark`` on *arguments*, which must end with *code* and one line on stderr; returns
    that."""
    done = layer.run("mark", *arguments, check=False)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def marks(layer: Layer) -> list[dict[str, Any]]:
    return [entry for entry in layer.entries() if entry["op"] == "mark"]


def test_a_mark_is_an_entry_at_the_present_point(layer: Layer) -> None:
    layer.start()
    (layer.mountpoint / "before").write_text("x")
    done = layer.run("mark", "volume", "before upgrade")
    (layer.mountpoint / "after").mkdir()
    entries = layer.entries()
    marked = next(entry for entry in entries if entry["op"] == "mark")
    assert done.stdout == f'marked "before upgrade" at seq {marked["seq"]}\n'
    assert done.stderr == ""
    assert (marked["name"], marked["uid"], marked["gid"], marked["pid"]) == (
        "before upgrade", 0, 0, 0,
    )  # fmt: skip
    paths = {entry["path"]: entry["seq"] for entry in entries if entry["path"] is not None}
    assert paths["before"] < marked["seq"] < paths["after"]
    layer.stop()


def test_json(layer: Layer) -> None:
    layer.start()
    for volume in ("volume", str(layer.mountpoint), str(layer.state)):
        earliest_ns = time.time_ns() - 50_000_000  # the kernel's coarse clock, and a tick of it
        answer = json.loads(layer.run("mark", volume, "höhe", "--json").stdout)
        newest = marks(layer)[-1]
        assert answer == {"name": "höhe", "seq": newest["seq"], "time_ns": newest["time_ns"]}
        assert earliest_ns < answer["time_ns"] <= time.time_ns()
    # The same name again is another mark: the newest counts.
    assert [entry["name"] for entry in marks(layer)] == ["höhe"] * 3


def test_names(layer: Layer) -> None:
    layer.start()
    for name in (
        "",
        " ",
        " x",
        "x ",
        "12",
        "²",
        "a\nb",
        "\x1b[31m",
        "x" * 129,
        os.fsdecode(b"\xff"),
    ):
        assert "cannot be a mark's name" in fails(layer, 2, "volume", "--", name)
    for name in ("yesterday", "14:00", "Now", "2024-05-01", "2 hours ago", "-2 hours", "@17"):
        assert "reads as a time" in fails(layer, 2, "volume", "--", name)
    head = layer.head_seq()
    for wrong in (None, 5, ["x"], "", "7", "x" * 129, "\udcff"):
        with pytest.raises(RemoteError, match="cannot be a mark's name") as caught:
            ask(layer.state, "mark", name=wrong)
        assert caught.value.exit_code == UsageError.exit_code
    assert layer.head_seq() == head
    good = ["x" * 128, "ä" * 128, "v2.1", "12a", 'a "quoted" name', "--json", "30 February"]
    for name in good:
        layer.run("mark", "volume", "--", name)
    assert [entry["name"] for entry in marks(layer)] == good
    layer.stop()


def test_a_mark_is_durable_when_the_command_returns(tmp_path: Path) -> None:
    # Nothing but the mark itself asks for a flush within this test.
    with Layer(tmp_path, config="[journal]\nflush_interval_seconds = 60.0\n") as layer:
        layer.start()
        (layer.mountpoint / "file").write_text("content")
        seq = json.loads(layer.run("mark", "volume", "here", "--json").stdout)["seq"]
        assert layer.ask()["durable_seq"] >= seq
        layer.kill()
        assert marks(layer)[-1]["seq"] == seq
        layer.start()
        assert (layer.mountpoint / "file").read_text() == "content"
        assert [(entry["seq"], entry["name"]) for entry in marks(layer)] == [(seq, "here")]
        layer.stop()
        layer.run("journal", "verify", str(layer.state))


def test_marks_amid_changes(layer: Layer) -> None:
    layer.start()
    over = threading.Event()

    def change() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            (layer.mountpoint / f"f{number}").write_text("x")

    with ThreadPoolExecutor() as pool:
        changing = pool.submit(change)
        try:
            answers = [ask(layer.state, "mark", name=f"m{number}") for number in range(20)]
        finally:
            over.set()
        changing.result()
    assert [(f"m{number}", one["seq"], one["time_ns"]) for number, one in enumerate(answers)] == [
        (entry["name"], entry["seq"], entry["time_ns"]) for entry in marks(layer)
    ]
    layer.stop()


def test_a_volume_that_takes_no_marks(layer: Layer) -> None:
    assert "no volume 'volume'" in fails(layer, 3, "volume", "here")
    layer.start()
    layer.stop()
    assert "is not mounted: fusejournal mount volume" in fails(layer, 7, "volume", "here")
    layer.start("-o", "ro")
    assert "mounted read-only" in fails(layer, 2, "volume", "here")
    layer.stop()
    assert not marks(layer)


def test_no_space_for_a_mark(layer: Layer) -> None:
    layer.start()
    layer.stop()
    layer.start(fault="journal.append:1:ENOSPC")
    assert "no space left" in fails(layer, JournalFullError.exit_code, "volume", "here")
    layer.run("mark", "volume", "there")
    assert [entry["name"] for entry in marks(layer)] == ["there"]
    layer.stop()


@pytest.mark.parametrize("label", ["journal.append", "journal.sync"])
def test_a_failing_disk(layer: Layer, label: str) -> None:
    layer.start()
    layer.stop()
    layer.start(fault=f"{label}:1:EIO+")
    line = fails(layer, JournalFailedError.exit_code, "volume", "here")
    assert "Input/output error" in line
    assert ("may not outlive the machine" in line) == (label == "journal.sync")
    assert layer.ask()["state"] == "read-only"
    assert "takes no marks" in fails(layer, JournalError.exit_code, "volume", "there")


def test_a_mark_is_removed_and_may_be_made_again(layer: Layer, tmp_path: Path) -> None:
    layer.start()
    seqs = {}
    for name in ("kept", "gone", "gone", "also kept"):
        (layer.mountpoint / name).mkdir(exist_ok=True)
        seqs[name] = json.loads(layer.run("mark", "volume", name, "--json").stdout)["seq"]

    def listed() -> dict[str, int]:
        lines = layer.run("mark", "volume", "--list", "--json").stdout.splitlines()
        return {one["name"]: one["seq"] for one in map(json.loads, lines)}

    assert listed() == seqs
    assert len(layer.run("mark", "volume", "--list").stdout.splitlines()) == 4
    done = layer.run("mark", "volume", "gone", "--remove")
    removal = marks(layer)[-1]
    assert done.stdout == f'removed mark "gone", by entry {removal["seq"]}\n'
    assert (removal["name"], removal["removed_name"]) == (None, "gone")
    assert "gone is removed" in layer.run("log", "volume", "--op", "mark").stdout
    del seqs["gone"]
    assert listed() == seqs
    target = ("--target", str(tmp_path / "out"))
    done = layer.run("restore", "volume", "--to-mark", "gone", *target, check=False)
    assert done.returncode == NoSuchMomentError.exit_code
    assert "fusejournal mark volume --list" in done.stderr
    layer.run("restore", "volume", "--to-mark", "also kept", *target)
    fails(layer, NoSuchMomentError.exit_code, "volume", "gone", "--remove")
    fails(layer, 2, "volume", "--remove")
    fails(layer, 2, "volume", "gone", "--list")
    layer.run("mark", "volume", "gone")
    assert listed().keys() == {*seqs, "gone"}
    layer.stop()
    assert listed().keys() == {*seqs, "gone"}
