"""The house is kept: what its pages say of the code is so, and names and sizes keep their bounds.
Each list of exceptions here may only shrink."""

import ast
import importlib
import pkgutil
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from enum import Enum
from textwrap import dedent
from typing import TypeVar

from fusejournal import config as config_module
from fusejournal.config import Config
from fusejournal.errors import FusejournalError
from fusejournal.node import state_dir
from fusejournal.replication.states import MIRROR_TRANSITIONS, PEER_TRANSITIONS, diagram
from fusejournal.roles.handoff import HANDOFF_TRANSITIONS
from fusejournal.roles.role import ROLE_TRANSITIONS
from fusejournal.volume.acceptance import ACCEPTANCE_TRANSITIONS
from fusejournal.volume.trouble import TroubleKind
from fusejournal.wire.session_states import session_diagram
from tests.support.assignments import assigned_from_outside
from tests.support.house import (
    PACKAGE,
    TOP,
    Module,
    functions_in,
    other_paths,
    over,
    package_modules,
)

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)

_MODULE_LINES_MAX = 500
_FUNCTION_LINES_MAX = 70

_LARGE_MODULES: dict[str, int] = {}
"""Modules that are longer, by their last name, and how long each may be."""

_LONG_FUNCTIONS: dict[str, int] = {}
"""Functions that are longer, by the module's last name and their own, and how long each may be."""


# -- the map and the pages -------------------------------------------------------------------------


def _is_named(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def _rooms_of_the_map() -> dict[str, str]:
    """The sections of the map by the rooms that they are about: "" for the modules in no room."""
    page = (PACKAGE / "ARCHITECTURE.md").read_text()
    _, _, rest = page.partition("\n## Rooms and modules\n")
    found = {}
    for section in rest.partition("\n## ")[0].split("\n### ")[1:]:
        heading, _, text = section.partition("\n")
        for room in heading.partition(":")[0].split(", "):
            found["" if room == "The words" else room] = text
    return found


def test_the_map_names_every_room_and_module() -> None:
    """In the section of the room, and as a name."""
    sections = _rooms_of_the_map()
    modules = {m for m in package_modules() if m.last_name not in ("__init__", "__main__")}
    rooms = {module.room if "/" in module.name else "" for module in modules}
    assert rooms | {"native"} == sections.keys()  # that one has no Python
    missing = [
        module.name
        for module in modules
        if f"`{module.last_name}`" not in sections[module.room if "/" in module.name else ""]
    ]
    assert sorted(missing) == []


def _section(page: str, name: str, upto: str) -> str:
    text = (PACKAGE / page).read_text()
    return text.partition(f"\n## {name}\n")[2].partition(f"\n## {upto}\n")[0]


def test_the_rows_of_the_map_are_the_contract() -> None:
    contract = ConfigParser()
    contract.read(TOP / "setup.cfg")
    rows = contract["importlinter:contract:layers"]["layers"].strip().split("\n")
    page = _section("ARCHITECTURE.md", "The rows", "Rooms and modules")
    shown = re.findall(r"^\| .*\| (`.*) \|$", page, re.MULTILINE)
    found = [re.findall(r"`(\w+)`", row) for part in shown for row in part.split("; ")]
    assert found == [row.split(" | ") for row in rows]


def _defined() -> set[str]:
    """The names that a walk may use: files by their last parts; classes and functions, alone or
    with their class or module."""
    found: set[str] = set()
    for module in package_modules():
        parts = f"{module.name}.py".split("/")
        found.update("/".join(parts[start:]) for start in range(len(parts)))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found |= {node.name, f"{module.last_name}.{node.name}"}
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{one.name}" for one in functions_in(node)}
    return found


def test_the_walks_name_what_is_there() -> None:
    walks = _section("ARCHITECTURE.md", "A write", "Glossary")
    names = set(re.findall(r"`@?([\w./]+)(?:\([^`]*\))?`", walks))
    assert len(names) > 100
    no_code = {name for name in names if name.startswith("STATE/")} | {"strict", "nfs"}
    assert sorted(names - no_code - _defined()) == []


def test_the_page_of_formats_lists_the_state_directory() -> None:
    """Its module lists it, too; that is compared with what a run writes (test_state_table.py)."""
    page = _section("journal/FORMAT.md", "The state directory", "Segment")
    shown = re.findall(r"^\| `([^`/]+)", page, re.MULTILINE)
    listed = re.findall(r"^ +STATE/(\S+?)/? +\S", state_dir.__doc__ or "", re.MULTILINE)
    assert len(shown) > 10
    assert sorted({*shown} - {"diverged.FIRST-LAST"}) == sorted(listed)


def _errors() -> Iterator[type[FusejournalError]]:
    """Every error there is, those that no other test imports too."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "fusejournal."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as missing:
                # Without the extra "console" its server cannot be loaded; it defines no exit code.
                if missing.name not in ("hypercorn", "hypercorn.config", "starlette"):
                    raise
    left: list[type[FusejournalError]] = [FusejournalError]
    while left:
        found = left.pop()
        yield found
        left += found.__subclasses__()


def test_exit_codes_are_unique_and_listed() -> None:
    codes: dict[int, list[str]] = defaultdict(list)
    for error in _errors():
        if "exit_code" in vars(error) and error.__module__.startswith("fusejournal."):
            codes[error.exit_code].append(error.__name__)
    assert {code: names for code, names in codes.items() if len(names) > 1} == {}
    manual = (PACKAGE / "MANUAL.md").read_text()
    section = manual.partition("## Exit codes")[2].partition("\n## ")[0]
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert listed == sorted({0, *codes})


def test_the_kinds_of_troubles_are_listed() -> None:
    section = (PACKAGE / "MANUAL.md").read_text().partition("\n| kind | what is wrong |\n")[2]
    rows = section.partition("\n\n")[0].splitlines()[1:]
    listed = [kind for row in rows for kind in re.findall("`([^`]+)`", row.split(" | ")[0])]
    assert sorted(listed) == sorted(kind.value for kind in TroubleKind)


def _configuration_blocks() -> Iterator[tuple[str, str]]:
    """The pages that show a whole configuration, with their text."""
    yield "config.py", config_module.__doc__ or ""
    for path in (TOP / "README.md", PACKAGE / "MANUAL.md"):
        yield path.name, path.read_text()


def _block_in(text: str) -> str:
    """The indented or fenced block of all sections; empty if there is none."""
    match = re.search(
        r"^( *)\[volume\]\n(?:\1.*\n|\n)*?\1\[log\]\n(?:\1[^\[\s].*\n?)+", text, re.MULTILINE
    )
    return dedent(match[0]) if match else ""


def test_the_configuration_that_is_shown_is_the_default() -> None:
    shown = 0
    for where, text in _configuration_blocks():
        block = _block_in(text)
        if not block:
            continue
        shown += 1
        # What has no value of its own, and cannot have one that does nothing, stands in a comment.
        block = re.sub(r"^# (\w+ = .*)", r"\1", block, flags=re.MULTILINE)
        raw = tomllib.loads(block.replace("NAME =", "name ="))
        loaded = Config.of(raw)
        for section in Config._fields:
            defaults = Config._field_defaults[section]
            assert set(raw[section]) == set(defaults._fields), f"{where}: [{section}]"
            for key in defaults._fields:
                default = getattr(defaults, key)
                if default is not None and default != {}:
                    given = getattr(getattr(loaded, section), key)
                    assert given == default, f"{where}: {section}.{key}"
    assert shown >= 2


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]
    assert [module.name for module in package_modules() if project["version"] in module.text] == []


def _by_state(table: Mapping[tuple[S, E], S]) -> dict[S, dict[E, S]]:
    """The rows of *table* by their first states; empty for a state that is none's."""
    found: dict[S, dict[E, S]] = {state: {} for state, _ in table}
    found.update({target: {} for target in table.values() if target not in found})
    for (state, event), target in table.items():
        found[state][event] = target
    return found


def test_the_state_diagrams_are_the_tables() -> None:
    page = (PACKAGE / "wire" / "PROTOCOL.md").read_text()
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert blocks == [session_diagram(), diagram(PEER_TRANSITIONS), diagram(MIRROR_TRANSITIONS)]
    page = (PACKAGE / "ARCHITECTURE.md").read_text()
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert blocks == [
        diagram(ACCEPTANCE_TRANSITIONS),
        diagram(_by_state(ROLE_TRANSITIONS)),
        diagram(_by_state(HANDOFF_TRANSITIONS)),
    ]


def test_the_page_on_concurrency_names_every_task() -> None:
    """Those that the layer's process starts, by their functions."""
    page = (PACKAGE / "layer/CONCURRENCY.md").read_text()
    own = (
        "work",
        "watch",
        "give_up",
        "ask",
        "accept",
        "_accept",
        "_serve_one",
        "_handle",
        "_ask_once",
    )
    missing = []
    for module in package_modules():
        own_processes = ("node/metrics_server", "node/witness_process", "replication/witness")
        if module.room in ("agent", "console") or module.name in own_processes:
            continue
        for call in re.findall(r"\.(?:start_soon|start)\(\s*([\w.]+)", module.text):
            name = call.rpartition(".")[2]
            if name not in own and not _is_named(name, page):
                missing.append(f"{module.name}: {call}")
    assert missing == []


# -- names -----------------------------------------------------------------------------------------


def _module_level_names(tree: ast.Module) -> Iterator[str]:
    """Public constants and aliases, but for type parameters of one letter."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name) and re.fullmatch(r"(?!log$)[A-Za-z]\w+", target.id):
                yield target.id


def test_names_are_unique() -> None:
    """One word, one thing: classes, and the constants and aliases of modules."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in package_modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module.name)
        for name in _module_level_names(module.tree):
            places[name].append(module.name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


_LABELLED = frozenset(
    (
        *("reached", "pwritev", "write_all", "fsync", "fdatasync", "syncfs", "fsync_directory"),
        *("ftruncate", "fallocate", "rename", "link", "unlink"),
    )
)
_LABELLED_STEPS = {
    "write_atomically": ("write", "sync", "rename", "directory"),
    "replacing": ("sync", "rename", "directory"),
    "write_new": ("write", "sync"),
    "remove": ("unlink", "directory"),
}
"""The steps of :mod:`fusejournal.disk.files` under one label."""


def _labels(module: Module) -> Iterator[str]:
    """The labels of storage calls in *module*: first arguments to functions of the modules that
    take one."""
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        match node.func:
            case ast.Name(id=name):
                is_labelled = name in _LABELLED or name in _LABELLED_STEPS
            case ast.Attribute(value=ast.Name(id="calls" | "failpoints" | "files"), attr=name):
                is_labelled = True
            case _:
                continue
        match node.args[0]:
            case ast.Constant(value=str() as label) if is_labelled:
                for step in _LABELLED_STEPS.get(name, ("",)):
                    yield f"{label}.{step}".rstrip(".")


def test_a_label_stands_for_one_call() -> None:
    labels = Counter(label for module in package_modules() for label in _labels(module))
    assert len(labels) > 50
    assert {label: count for label, count in labels.items() if count > 1} == {}


# -- sizes -----------------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    sizes: dict[str, int] = defaultdict(int)
    for module in package_modules():
        sizes[module.last_name] = max(sizes[module.last_name], module.text.count("\n"))
    assert over(sizes, _MODULE_LINES_MAX, _LARGE_MODULES, slack=100) == []


def test_modules_of_tests_and_scripts_are_short() -> None:
    """None is excepted: a longer one is split by what it tests."""
    sizes = {str(path.relative_to(TOP)): path.read_text().count("\n") for path in other_paths()}
    assert len(sizes) > 400
    assert over(sizes, _MODULE_LINES_MAX, {}) == []


def test_functions_are_short() -> None:
    sizes: dict[str, int] = {}
    for module in package_modules():
        for node in functions_in(module.tree):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            name = f"{module.last_name}: {node.name}"
            sizes[name] = max(length, sizes.get(name, 0))
    assert over(sizes, _FUNCTION_LINES_MAX, _LONG_FUNCTIONS, slack=20) == []


# -- wiring ----------------------------------------------------------------------------------------

_ASSIGNED_BY_ITS_ROOM = {
    # What the tree has read of a file, kept with its node because that is looked up anyway. Each
    # WRITE sets it: a call would cost more than the rest.
    "CatalogNode.capability": "backing/",
    "CatalogNode.default_acl": "backing/",
}
"""Attributes that other modules assign, too, but only those below a path."""


def test_attributes_are_assigned_by_their_own_module() -> None:
    """An object is wired once, by its constructor; what changes it later is a method of its own,
    whose name says what happens."""
    trees = {module.name: module.tree for module in package_modules()}
    found = [
        f"{name}:{line}: {attribute}"
        for name, line, attribute in assigned_from_outside(trees)
        if not name.startswith(_ASSIGNED_BY_ITS_ROOM.get(attribute, "nowhere"))
    ]
    assert found == []


def test_what_is_assigned_from_outside_is_found() -> None:
    own = "class Bell:\n    def __init__(self) -> None:\n        self.rung = 0\n"
    other = (
        "class Door:\n"
        "    def __init__(self, bell: 'Bell | None') -> None:\n"
        "        self._bell = bell\n"
        "    def knock(self, more) -> None:\n"
        "        self._bell.rung += 1\n"
        "        bell = Bell()\n"
        "        bell.rung = more.rung = 2\n"
        "        more.sound = 3\n"
    )
    trees = {"bell": ast.parse(own), "door": ast.parse(other)}
    found = [(line, attribute) for _, line, attribute in assigned_from_outside(trees)]
    assert found == [(5, "Bell.rung"), (7, "Bell.rung"), (7, "?.rung")]
