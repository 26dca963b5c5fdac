"""The account of what the kernel remembers of a mirror: kept of so many files, and asked for of
more."""

import errno
import os

import pyfuse3
import pytest

from fusejournal.layer import kernel_cache
from fusejournal.layer.kernel_cache import KernelCache
from fusejournal.operations import Setattr, Write
from fusejournal.types import ROOT_FID, Fid


class _Kernel:
    """The kernel's inodes."""

    def __init__(self) -> None:
        self.inodes: set[int] = {ROOT_FID}
        self.asked: list[int] = []
        self.errno = errno.ENOENT

    def invalidate_inode(self, fid: int, attr_only: bool) -> None:
        self.asked.append(fid)
        if fid not in self.inodes:
            raise OSError(self.errno, os.strerror(self.errno))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    kernel = _Kernel()
    monkeypatch.setattr(pyfuse3, "invalidate_inode", kernel.invalidate_inode)
    monkeypatch.setattr(kernel_cache, "_ACCOUNT_MAX", 3)
    return kernel


def _chmod(fid: int) -> Setattr:
    return Setattr(Fid(fid), 0o600, None, None, None, None)


def test_what_the_kernel_does_not_know_costs_nothing(kernel: _Kernel) -> None:
    recalled: list[set[Fid]] = []
    cache = KernelCache(recalled.append, everything=False)
    kernel.inodes.add(7)
    cache.note_lookup(Fid(7))
    cache.note_lookup(Fid(7))
    for fid in (7, 8):
        cache.invalidate(_chmod(fid))
    assert kernel.asked == [7]
    cache.recall()
    cache.recall()
    assert recalled == [{7}]
    cache.note_forget(Fid(7), 1)
    assert Fid(7) in cache
    cache.note_forget(Fid(7), 1)
    assert Fid(7) not in cache
    assert ROOT_FID in cache
    assert kernel.asked == [7]


def test_of_more_than_can_be_counted_it_is_asked(kernel: _Kernel) -> None:
    cache = KernelCache(lambda _: None, everything=False)
    for fid in range(10, 20):
        kernel.inodes.add(fid)
        cache.note_lookup(Fid(fid))
    assert not cache._lookups
    assert Fid(11) in cache
    assert Fid(99) not in cache
    kernel.asked.clear()
    cache.invalidate(Write(Fid(12), 0, None))
    cache.invalidate(Write(Fid(99), 0, None))
    assert kernel.asked == [12, 99]
    assert not cache.opened(Fid(12))
    assert cache.opened(Fid(12))
    assert cache.opened(Fid(99))


def test_a_file_that_was_looked_up_again_is_not_taken_for_forgotten(kernel: _Kernel) -> None:
    cache = KernelCache(lambda _: None, everything=True)
    kernel.inodes.add(7)
    cache.invalidate(Write(Fid(7), 0, None))
    cache.note_forget(Fid(7), 1)
    assert not cache.opened(Fid(7))
    cache.invalidate(Write(Fid(7), 0, None))
    kernel.inodes.discard(7)
    cache.note_forget(Fid(7), 1)
    assert cache.opened(Fid(7))


def test_where_too_many_have_changed_all_are_dropped_when_opened(kernel: _Kernel) -> None:
    cache = KernelCache(lambda _: None, everything=True)
    for fid in range(10, 20):
        kernel.inodes.add(fid)
        cache.invalidate(Write(Fid(fid), 0, None))
    assert not cache._spoilt
    assert not cache.opened(Fid(10))
    assert not cache.opened(Fid(99))


def test_a_mount_that_is_gone_knows_nothing(kernel: _Kernel) -> None:
    cache = KernelCache(lambda _: None, everything=True)
    kernel.errno = errno.ENODEV
    assert Fid(7) not in cache
    cache.invalidate(_chmod(7))
