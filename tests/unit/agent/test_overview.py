"""The problems of a volume, in words, and command lines as shells take them."""

import subprocess
from dataclasses import replace

from fusejournal.agent.command_lines import command_line
from fusejournal.agent.problems import problems_of
from fusejournal.node.volume_status import Condition
from fusejournal.volume.trouble import Trouble, TroubleKind
from tests.golden.statuses import STATUSES


def _others(*lines: str) -> tuple[Trouble, ...]:
    return tuple(Trouble(TroubleKind.OTHER, line) for line in lines)


def test_every_problem_is_named_once() -> None:
    for status in STATUSES.values():
        found = problems_of(status)
        assert len({one.key for one in found}) == len(found)
        assert {*status.degraded} <= {one.words for one in found}


def test_a_key_stays_while_the_words_change() -> None:
    status = replace(next(iter(STATUSES.values())), replication=None)
    for one, other, key in (
        ("read-only: disk error at 12", "read-only: disk error at 13", "failed"),
        ("the journal is damaged: 00007.fj: offset 3", "damage at offset 7", "damage"),
        ("peer 'east': 3 entries", "peer 'east': 4 entries", "degraded:peer #: # entries"),
    ):
        for words in (one, other):
            (found,) = (
                each
                for each in problems_of(replace(status, troubles=_others(words)))
                if each.words == words
            )
            assert found.key == key
    twice = problems_of(replace(status, troubles=_others("damage 1", "damage 2")))
    assert {"damage", "damage:2"} <= {one.key for one in twice}


def test_a_volume_without_a_layer_is_a_problem() -> None:
    status = next(iter(STATUSES.values()))
    stopped = replace(status, state=Condition.STOPPED, troubles=(), replication=None)
    (found,) = problems_of(replace(stopped, disk_free_bytes=1 << 40))
    assert found.to_json() == {
        "key": "stopped",
        "words": "no layer serves it",
        "severity": "warning",
        "advice": f"fusejournal mount {status.name}",
    }
    low = problems_of(replace(stopped, disk_free_bytes=5 << 20))
    assert "only 5 MiB are left" in low[1].words


def test_command_lines_mean_what_they_show() -> None:
    odd = ("it's", "a b", "bytes\udcff\x1b[31m'\\", "-x")
    shown = command_line(*odd, options=[("--op", None), ("--uid", 7), ("--apply", True)])
    script = shown.replace("fusejournal", "printf '%s\\0'", 1)
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    words = [one.encode("utf-8", "surrogateescape") for one in (*odd, "--uid", "7", "--apply")]
    assert done.stdout.split(b"\0")[:-1] == words
