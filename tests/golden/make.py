"""Writes golden files of the current formats: ``python -m tests.golden.make [NAME]...``.

Run when a format version is made, or gets a field that its earlier readers pass over; the files of
a version that was released never change. Without a name all are written that can be compared with
what the program writes today."""

import json
import sys

from tests.golden.files import HERE
from tests.golden.samples import GOLDENS, make


def main() -> None:
    """Write what the command line names."""
    for name in sys.argv[1:] or [name for name, one in GOLDENS.items() if one.is_compared]:
        target = HERE / f"{name}.json"
        target.write_text(json.dumps(make(name), indent=1) + "\n")
        print(target)


if __name__ == "__main__":
    main()
