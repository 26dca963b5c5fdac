"""The libraries that only the console needs, which the extra ``console`` installs."""

from importlib.util import find_spec
from typing import Final

_LIBRARIES: Final = ("hypercorn", "starlette")


def missing_libraries() -> str:
    """Returns what the page lacks here, in words; nothing where it can be served."""
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if not missing:
        return ""
    return f"the console needs {' and '.join(missing)}: pip install 'fusejournal[console]'"
