"""A fixture of the tests of mounts that outlive their layer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.layer import Layer


@pytest.fixture(params=["beside", "in place"])
def held(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Layer]:
    """A running layer whose mount is held, as an export's is."""
    with Layer(tmp_path, in_place=request.param == "in place") as layer:
        layer.export_to_nobody()
        layer.start()
        layer.run("restart", "volume")
        assert layer.ask()["held"]
        yield layer
