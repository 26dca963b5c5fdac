"""The copies that an admin makes of a volume's directories, and what is in them."""

import hashlib
import os
import subprocess
from pathlib import Path

_RSYNC_PARTIAL = 23


class Copies:
    """The copies that an admin keeps of a volume's directories."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._made = 0
        self.found: list[Path] = []

    def take(self, places: dict[str, Path]) -> None:
        """Keep state and backing as they are now."""
        target = self._base / f"copy{self._made}"
        self._made += 1
        target.mkdir()
        for name, place in places.items():
            copy_tree(place, target / name)
        self.found.append(target)


def copy_tree(source: Path, target: Path) -> None:
    """Make *target* of *source*, with all attributes."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def rsync_tree(source: Path, target: Path) -> None:
    """Make *target*, which is there, what *source* is."""
    command = ["rsync", "-aHAX", "--delete", f"{source}/", f"{target}/"]
    done = subprocess.run(command, check=False, capture_output=True)
    # (It asks for a directory's ACL where it has a file, and says that something was left out.)
    assert done.returncode in (0, _RSYNC_PARTIAL), done


def aside(place: Path) -> Path:
    """The path that what was in *place* has while something else is there."""
    return place.with_name(f"good {place.name}")


def contents_of(*roots: Path) -> set[str]:
    """The checksums of every file's content below *roots*, but for empty ones."""
    found = set()
    for root in roots:
        for directory, _, files in os.walk(root):
            for name in files:
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink() and path.stat().st_size:
                    found.add(hashlib.sha256(path.read_bytes()).hexdigest())
    return found
