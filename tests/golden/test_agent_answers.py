"""A console reads what an agent has answered. That an agent of today still answers so is compared
with the same files (test_formats.py)."""

import json
from typing import Any

import pytest

from fusejournal.console.agents import _answer_in
from fusejournal.console.checked_overview import checked_overview
from tests.golden import agent_answers, answers
from tests.golden.files import golden

_SAMPLES = {
    **{f"agent-answers-v1 {name}": one for name, one in golden("agent-answers-v1").items()},
    **{f"answers-v1 {name}": one for name, one in golden("answers-v1").items()},
}


def test_each_call_has_an_answer_or_a_reason() -> None:
    """In one of the two files, and once."""
    assert set(golden("answers-v1")) == set(answers.CALLS)
    assert set(golden("agent-answers-v1")) == set(agent_answers.CALLS)
    known = [*answers.CALLS, *agent_answers.CALLS, *answers.WITHOUT_SAMPLE]
    assert sorted(known) == sorted(golden("calls-v1"))


@pytest.mark.parametrize("name", _SAMPLES)
def test_an_answer_is_read(name: str) -> None:
    answer = _SAMPLES[name]
    assert _answer_in("cellar", json.dumps(answer).encode()) == answer


def test_the_overview_is_read() -> None:
    """All that it has is taken as it is: it is no agent's in the wrong hands."""
    answer: dict[str, Any] = golden("agent-answers-v1")["overview"]
    found = checked_overview(answer)
    assert found.node == answer["node"]
    assert found.volumes == answer["volumes"]
    assert [one["key"] for one in found.volumes[0]["problems"]] == [
        "peer-away:east",
        "clock",
    ]
