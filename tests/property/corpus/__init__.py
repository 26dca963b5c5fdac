"""Inputs that are kept for each decoder: those that it once failed on, and those that try its
limits. ``NAME.json`` is a list of ``{"why", "bytes" or "text", "says"}``; ``says`` is the name of
the error that the input is refused with, or ``read``."""

import json
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Input(NamedTuple):
    """One of them."""

    why: str
    data: bytes
    says: str


def _input(raw: Any) -> Input:
    data = raw["text"].encode() if "text" in raw else bytes.fromhex(raw["bytes"])
    return Input(raw["why"], data, raw["says"])


def inputs(name: str) -> list[Input]:
    """All inputs of the decoder *name*."""
    return [_input(raw) for raw in json.loads((HERE / f"{name}.json").read_text())]


def keep(name: str, found: Input) -> None:
    """Add *found* to the inputs of the decoder *name*."""
    path = HERE / f"{name}.json"
    kept: list[dict[str, str]] = json.loads(path.read_text()) if path.exists() else []
    try:
        shown = {"text": found.data.decode("ascii")}
    except UnicodeDecodeError:
        shown = {"bytes": found.data.hex()}
    if not shown.get("text", " ").replace("\n", " ").isprintable():
        shown = {"bytes": found.data.hex()}
    kept.append({"why": found.why, **shown, "says": found.says})
    path.write_text(json.dumps(kept, indent=1) + "\n")
