"""Bytes that decoders once failed on, or might, are refused or read as they were before. Runs
first."""

import pytest

from tests.property.corpus import HERE, Input, inputs
from tests.support.decoders import DECODERS, outcome_of

_ALL = [(name, one) for name in sorted(DECODERS) for one in inputs(name)]


def test_every_decoder_has_inputs() -> None:
    assert {path.stem for path in HERE.glob("*.json")} == set(DECODERS)


@pytest.mark.parametrize(("name", "kept"), _ALL, ids=[f"{name}-{one.why}" for name, one in _ALL])
def test_kept_input(name: str, kept: Input) -> None:
    assert outcome_of(name, kept.data) == kept.says
