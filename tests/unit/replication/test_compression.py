"""The level follows the link."""

from fusejournal.replication.compression import Compression

_LARGE = 1 << 20


def _level_after(compression: Compression, compress: float, blocked: float, ratio: float) -> int:
    for _ in range(200):
        level = compression.level_for(_LARGE)
        compression.took(_LARGE, int(_LARGE * ratio), compress if level else 0.0, blocked)
    return compression.level


def test_slow_link_gets_a_high_level() -> None:
    assert _level_after(Compression(9), 0.01, 1.0, 0.3) == 9
    assert _level_after(Compression(4), 0.01, 1.0, 0.3) == 4


def test_fast_link_gets_none_for_large_batches_alone() -> None:
    compression = Compression(9)
    assert _level_after(compression, 0.01, 0.0001, 0.3) == 0
    assert compression.level_for(_LARGE) == 0
    assert compression.level_for(1000) == 1


def test_comes_back_when_the_link_slows_down() -> None:
    compression = Compression(9)
    _level_after(compression, 0.01, 0.0, 0.3)
    assert _level_after(compression, 0.01, 1.0, 0.3) == 9


def test_what_does_not_compress_is_left_alone_for_a_while() -> None:
    compression = Compression(9)
    compression.took(_LARGE, _LARGE, 0.01, 0.01)
    assert [compression.level_for(_LARGE) for _ in range(17)].count(0) == 16
