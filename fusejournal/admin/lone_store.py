"""A store of versions without a volume: what can be had of it on a machine that has nothing else,
with the recovery key if it is encrypted."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fusejournal.admin.version_store import load_store_config
from fusejournal.admin.versions import ListedVersion, ListedVersions, VolumeVersions
from fusejournal.objects.service import do_not_wait, is_address, parse_address
from fusejournal.objects.store import ObjectTraffic
from fusejournal.types import Progress
from fusejournal.versions.blocks import BlockReader
from fusejournal.versions.keys import read_key_file
from fusejournal.versions.manifest import (
    Version,
    protected_keys,
    read_versions,
    store_head,
)
from fusejournal.versions.place import open_store, unsealed

if TYPE_CHECKING:
    from fusejournal.replay.made_aside import Restored
    from fusejournal.versions.verify import Verified


def is_store(text: str) -> bool:
    """Returns True if *text* is an address of a store, or the directory of one."""
    directory = Path(text)
    return is_address(text) or (
        (directory / "store").is_file() and not (directory / "volume.json").exists()
    )


class LoneStore:
    """The versions in a store, of all its volumes."""

    def __init__(
        self,
        where: str,
        key_file: Path | None,
        config: Path | None,
        waiting: Callable[[], None] = do_not_wait,
    ) -> None:
        """*key_file*: a file with the recovery key. See VolumeVersions for the others. Raises
        ConfigError, StoreKeyError, StoreError, OSError."""
        self.name = str(parse_address(where)) if is_address(where) else where
        key = read_key_file(key_file, private=False) if key_file is not None else None
        store = open_store(
            self.name, writing=False, config=load_store_config(config), waiting=waiting
        )
        self._store = unsealed(store, store_head(store), key)

    def traffic(self) -> ObjectTraffic | None:
        """Returns what came from the store, if it is a far one."""
        return self._store.traffic

    def all(self) -> ListedVersions:
        """Returns all versions, by volume and seq. Raises StoreError."""
        protected = protected_keys(self._store)
        found = read_versions(self._store, None)
        listed = [ListedVersion(one, one.key in protected, "unknown") for one in found.versions]
        return ListedVersions(listed, found.unreadable)

    def find(self, wanted: str) -> ListedVersion:
        """Does what VolumeVersions.find does, among those of all volumes."""
        return self.all().find(self.name, wanted)

    def path(self, text: str) -> bytes:
        """Returns the path below a volume's root that *text* stands for."""
        return os.fsencode(os.path.normpath("/" + text)).strip(b"/")

    def verify(self, wanted: str, progress: Progress, *, with_data: bool) -> "Verified":
        """Verifies a version: see verify_version."""
        from fusejournal.versions.verify import verify_version

        version = self.find(wanted).version
        return verify_version(BlockReader(self._store), version, progress, with_data=with_data)

    def restore(
        self, wanted: str, path: bytes, target: Path, progress: Progress
    ) -> "tuple[Restored, Version]":
        """Restores *path* as it is in a version: see restore_version."""
        from fusejournal.versions.restore import restore_version

        version = self.find(wanted).version
        return restore_version(BlockReader(self._store), version, path, target, progress), version


def open_versions(
    text: str,
    key_file: Path | None = None,
    config: Path | None = None,
    waiting: Callable[[], None] = do_not_wait,
) -> VolumeVersions | LoneStore:
    """Opens the versions of the volume, or in the store, that *text* names."""
    if is_store(text):
        return LoneStore(text, key_file, config, waiting)
    return VolumeVersions(text, waiting, config)
