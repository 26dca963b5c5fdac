"""Programs for the hooks of nodes whose roles change, and pairs of nodes that call them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mirrors import CONFIG, Node, await_level, nodes
from tests.support.promotions import work


class HookPrograms:
    """Programs in *base*: one before a change, which stops something and goes on for long, and one
    after it, which brings that back; each leaves a file that says so."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.taken = base / "taken"
        """There once the one before has run."""
        self.brought_back = base / "brought-back"
        """There once the one after has run, with the role that the node has then."""
        self.stops = self.program(
            "stops-what-runs", f"rm -f {self.brought_back}", f"touch {self.taken}", "exec sleep 100"
        )
        self.starts = self.program("starts-it", f'echo "$FUSEJOURNAL_ROLE" >{self.brought_back}')

    def program(self, name: str, *lines: str) -> str:
        """Make the shell script *name*; return its path."""
        path = self._base / name
        path.write_text("\n".join(("#!/bin/sh", *lines, "")))
        path.chmod(0o755)
        return str(path)

    @contextmanager
    def pair(self, *, on: str = "both", **hooks: str) -> Iterator[tuple[Node, Node]]:
        """A primary and its mirror that run and are level. *hooks*: the program of each kind
        (``before``, ``after``, ``fence``) that nodes call: *both*, or the ``primary`` or the
        ``mirror`` alone."""
        config = with_hooks(**hooks)
        with nodes(self._base, None) as (primary, mirror):
            for node, name in ((primary, "primary"), (mirror, "mirror")):
                if on in ("both", name):
                    node.reconfigure(config)
                node.start()
            work(primary, "first")
            await_level(primary, mirror)
            yield primary, mirror


def with_hooks(**hooks: str) -> str:
    """Returns a configuration with the program of each kind of *hooks*."""
    lines = [
        f"{kind} = '{command}'" if kind == "fence" else f"{kind} = ['{command}']"
        for kind, command in hooks.items()
    ]
    return CONFIG + "\n".join(("[hooks]", *lines, ""))
