"""Reigns, and the exit codes of errors."""

import importlib
import pkgutil
from collections import Counter

import pytest

import fusejournal
from fusejournal.errors import FusejournalError
from fusejournal.types import Epoch, Reign


def reign(epoch: int, node_id: int) -> Reign:
    return Reign(Epoch(epoch), node_id)


@pytest.mark.parametrize(
    ("known", "seen", "kept"),
    [
        (reign(3, 7), reign(3, 0), reign(3, 7)),
        (reign(3, 0), reign(3, 7), reign(3, 7)),
        (reign(3, 7), reign(4, 0), reign(4, 0)),
        (reign(3, 7), reign(2, 9), reign(3, 7)),
        (reign(3, 7), reign(4, 1), reign(4, 1)),
    ],
)
def test_whose_a_reign_is_is_not_forgotten(known: Reign, seen: Reign, kept: Reign) -> None:
    assert known.after(seen) == kept


def test_an_exit_code_means_one_thing() -> None:
    for module in pkgutil.walk_packages(fusejournal.__path__, "fusejournal."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    todo, codes = [FusejournalError], Counter[int]()
    while todo:
        error = todo.pop()
        todo += error.__subclasses__()
        if error.__module__.startswith("fusejournal.") and "exit_code" in vars(error):
            codes[error.exit_code] += 1
    assert [code for code, count in codes.items() if count > 1] == []
