"""The modules of the package, the tests and the scripts, for the tests that keep the house."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import fusejournal

PACKAGE = Path(fusejournal.__file__).parent
TOP = PACKAGE.parent


class Module(NamedTuple):
    """One module. ``name`` is its path without the suffix: below the package, where it is of that,
    and below the checkout, where it is of the tests or the scripts."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The package that it lies in, or itself."""
        return self.name.partition("/")[0]

    @property
    def last_name(self) -> str:
        """Its own name, which stays when it moves to another room."""
        return self.name.rpartition("/")[2]


def _module_at(path: Path, below: Path) -> Module:
    text = path.read_text()
    return Module(str(path.relative_to(below).with_suffix("")), text, ast.parse(text))


@cache
def package_modules() -> tuple[Module, ...]:
    """The modules of the package."""
    return tuple(_module_at(path, PACKAGE) for path in sorted(PACKAGE.rglob("*.py")))


def other_paths() -> list[Path]:
    """The files of the modules of tests and scripts."""
    return [path for top in ("tests", "scripts") for path in sorted((TOP / top).rglob("*.py"))]


@cache
def other_modules() -> tuple[Module, ...]:
    """The modules of tests and scripts."""
    return tuple(_module_at(path, TOP) for path in other_paths())


def functions_in(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions and methods in *tree*, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def over(
    sizes: dict[str, int], limit: int, exceptions: dict[str, int], slack: int = 0
) -> list[str]:
    """Lists what is too large; and each exception that is not needed, or by more than *slack* too
    large."""
    found = [
        f"{name}: {size}, and {exceptions.get(name, limit)} are allowed"
        for name, size in sizes.items()
        if size > exceptions.get(name, limit)
    ]
    for name, ceiling in exceptions.items():
        size = sizes.get(name, 0)
        if size <= limit:
            found.append(f"{name}: {size}: take it off the list of exceptions")
        elif size + slack < ceiling:
            found.append(f"{name}: {size}: lower the ceiling of {ceiling}")
    return found
