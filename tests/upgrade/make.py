"""Keeps what a pair of an earlier release leaves: ``python -m tests.upgrade.make 0.1.0``.

Run once for each release; what was kept never changes. Needs root and the release's history."""

import json
import sys
import tempfile
from pathlib import Path

from fusejournal.replay.digest import digest_tree
from tests.support.mirrors import check_equal, nodes
from tests.upgrade.releases import (
    CONFIG,
    HERE,
    await_compressed,
    dump,
    program_of,
    run_release,
    unpack,
    work,
)


def main() -> None:
    """Write ``release-VERSION.json``."""
    release = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        program = unpack(release, base / "program")
        with nodes(base, None, config=CONFIG) as (primary, mirror):
            for node in (primary, mirror):
                run_release(node, program)
                node.start()
            work(primary.mountpoint)
            check_equal(primary, mirror)
            await_compressed(primary)
            await_compressed(mirror)
            digest = digest_tree(primary.mountpoint).digest
            assert program_of(primary) == program_of(mirror) == program
            for node in (primary, mirror):
                node.stop()
            raw = {
                "version": release,
                "digest": digest,
                "primary": dump(primary),
                "mirror": dump(mirror),
            }
    target = HERE / f"release-{release}.json"
    target.write_text(json.dumps(raw, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
