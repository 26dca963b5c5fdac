"""The libraries that the console needs are named where they are missing."""

import pytest

from fusejournal.console import libraries


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_LIBRARIES", ("json", "no_such_library", "nor_such_one"))
    assert libraries.missing_libraries() == (
        "the console needs no_such_library and nor_such_one: pip install 'fusejournal[console]'"
    )
    monkeypatch.setattr(libraries, "_LIBRARIES", ("json",))
    assert libraries.missing_libraries() == ""
