"""The house is kept: what its pages say of the code is so, and names, sizes and words keep their
bounds. Each list of exceptions here may only shrink."""

import ast
import importlib
import pkgutil
import re
import subprocess
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from enum import Enum
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple, TypeVar

import pytest

import fusejournal
from fusejournal import config as config_module
from fusejournal.config import Config
from fusejournal.errors import FusejournalError
from fusejournal.node import state_dir
from fusejournal.replication.states import MIRROR_TRANSITIONS, PEER_TRANSITIONS, diagram
from fusejournal.roles.handoff import HANDOFF_TRANSITIONS
from fusejournal.roles.role import ROLE_TRANSITIONS
from fusejournal.volume.acceptance import ACCEPTANCE_TRANSITIONS
from fusejournal.wire.session_states import session_diagram
from tests.support.assignments import assigned_from_outside

_PACKAGE = Path(fusejournal.__file__).parent
_TOP = _PACKAGE.parent

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)

_MODULE_LINES_MAX = 500
_FUNCTION_LINES_MAX = 70

_LARGE_MODULES: dict[str, int] = {}
"""Modules that are longer, by their last name, and how long each may be."""

_LONG_FUNCTIONS: dict[str, int] = {}
"""Functions that are longer, by the module's last name and their own, and how long each may be."""

_HEADLESS = re.compile(
    r"(What|Whatever|Whether|Who|Whoever|Whom|Whose|How|Where|Wherever|Which|When|Of|See|As)\b"
)

_CLAUSE = re.compile(
    r"(For|After|Before|From|Without|By|In|So|On|With|Until|If|At|To|Than|That|Because|Since|While"
    r"|Once|Unless|Also|But|And|Or|Then|Between|Beyond|Below|Above|Into|Out|Through|Over|Under|Not"
    r"|Only|About|During|Within|There|All (?:that|of)|Those|Up to|Called|It)\b"
)
"""Further openings of a clause. A test's docstring may begin so, where it goes on from its name."""


class Module(NamedTuple):
    """One module of the package. ``name`` is its path below it, without the suffix."""

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


@cache
def _modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        text = path.read_text()
        name = str(path.relative_to(_PACKAGE).with_suffix(""))
        found.append(Module(name, text, ast.parse(text)))
    return tuple(found)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _over(
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


# -- the map and the pages -------------------------------------------------------------------------


def _is_named(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def _rooms_of_the_map() -> dict[str, str]:
    """The sections of the map by the rooms that they are about: "" for the modules in no room."""
    page = (_PACKAGE / "ARCHITECTURE.md").read_text()
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
    modules = {m for m in _modules() if m.last_name not in ("__init__", "__main__")}
    rooms = {module.room if "/" in module.name else "" for module in modules}
    assert rooms | {"native"} == sections.keys()  # that one has no Python
    missing = [
        module.name
        for module in modules
        if f"`{module.last_name}`" not in sections[module.room if "/" in module.name else ""]
    ]
    assert sorted(missing) == []


def _section(page: str, name: str, upto: str) -> str:
    text = (_PACKAGE / page).read_text()
    return text.partition(f"\n## {name}\n")[2].partition(f"\n## {upto}\n")[0]


def test_the_rows_of_the_map_are_the_contract() -> None:
    contract = ConfigParser()
    contract.read(_TOP / "setup.cfg")
    rows = contract["importlinter:contract:layers"]["layers"].strip().split("\n")
    page = _section("ARCHITECTURE.md", "The rows", "Rooms and modules")
    shown = re.findall(r"^\| .*\| (`.*) \|$", page, re.MULTILINE)
    found = [re.findall(r"`(\w+)`", row) for part in shown for row in part.split("; ")]
    assert found == [row.split(" | ") for row in rows]


def _defined() -> set[str]:
    """The names that a walk may use: files by their last parts; classes and functions, alone or
    with their class or module."""
    found: set[str] = set()
    for module in _modules():
        parts = f"{module.name}.py".split("/")
        found.update("/".join(parts[start:]) for start in range(len(parts)))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found |= {node.name, f"{module.last_name}.{node.name}"}
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{one.name}" for one in _functions(node)}
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
    for module in pkgutil.walk_packages([str(_PACKAGE)], "fusejournal."):
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
    manual = (_PACKAGE / "MANUAL.md").read_text()
    section = manual.partition("## Exit codes")[2].partition("\n## ")[0]
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    assert listed == sorted({0, *codes})


def _configuration_blocks() -> Iterator[tuple[str, str]]:
    """The pages that show a whole configuration, with their text."""
    yield "config.py", config_module.__doc__ or ""
    for path in (_TOP / "README.md", _PACKAGE / "MANUAL.md"):
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
    project = tomllib.loads((_TOP / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (_TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]
    assert [module.name for module in _modules() if project["version"] in module.text] == []


def _by_state(table: Mapping[tuple[S, E], S]) -> dict[S, dict[E, S]]:
    """The rows of *table* by their first states; empty for a state that is none's."""
    found: dict[S, dict[E, S]] = {state: {} for state, _ in table}
    found.update({target: {} for target in table.values() if target not in found})
    for (state, event), target in table.items():
        found[state][event] = target
    return found


def test_the_state_diagrams_are_the_tables() -> None:
    page = (_PACKAGE / "wire" / "PROTOCOL.md").read_text()
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert blocks == [session_diagram(), diagram(PEER_TRANSITIONS), diagram(MIRROR_TRANSITIONS)]
    page = (_PACKAGE / "ARCHITECTURE.md").read_text()
    blocks = re.findall(r"^```mermaid\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert blocks == [
        diagram(ACCEPTANCE_TRANSITIONS),
        diagram(_by_state(ROLE_TRANSITIONS)),
        diagram(_by_state(HANDOFF_TRANSITIONS)),
    ]


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
    for module in _modules():
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
    labels = Counter(label for module in _modules() for label in _labels(module))
    assert len(labels) > 50
    assert {label: count for label, count in labels.items() if count > 1} == {}


# -- sizes -----------------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    sizes: dict[str, int] = defaultdict(int)
    for module in _modules():
        sizes[module.last_name] = max(sizes[module.last_name], module.text.count("\n"))
    assert _over(sizes, _MODULE_LINES_MAX, _LARGE_MODULES, slack=100) == []


def test_functions_are_short() -> None:
    sizes: dict[str, int] = {}
    for module in _modules():
        for node in _functions(module.tree):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            name = f"{module.last_name}: {node.name}"
            sizes[name] = max(length, sizes.get(name, 0))
    assert _over(sizes, _FUNCTION_LINES_MAX, _LONG_FUNCTIONS, slack=20) == []


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
    trees = {module.name: module.tree for module in _modules()}
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


# -- words -----------------------------------------------------------------------------------------


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Those of the module, its classes and functions, and those beneath constants and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield docstring
            for above, node_below in zip(node.body, node.body[1:], strict=False):
                if isinstance(above, ast.Assign | ast.AnnAssign):
                    match node_below:
                        case ast.Expr(value=ast.Constant(value=str() as text)):
                            yield text


def _package_trees() -> Iterator[tuple[str, ast.Module]]:
    for module in _modules():
        yield module.name, module.tree


@cache
def _other_trees() -> tuple[tuple[str, ast.Module], ...]:
    """Those of tests and scripts."""
    return tuple(
        (str(path.relative_to(_TOP)), ast.parse(path.read_text()))
        for top in ("tests", "scripts")
        for path in sorted((_TOP / top).rglob("*.py"))
    )


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    assert [
        f"{name}: {text.splitlines()[0]}"
        for name, tree in (*_package_trees(), *_other_trees())
        for text in _docstrings(tree)
        if _HEADLESS.match(text) or (not name.startswith("tests/") and _CLAUSE.match(text))
    ] == []


def _public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions, and the methods of classes, that other modules may call, constructors too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            node.name == "__init__" or not node.name.startswith("_")
        ):
            yield node


def test_a_coroutine_says_what_cancelling_does() -> None:
    assert [
        f"{module.name}: {node.name}"
        for module in _modules()
        for node in _public(module.tree)
        if isinstance(node, ast.AsyncFunctionDef)
        and "cancel" not in (ast.get_docstring(node) or "").lower()
    ] == []


_ARGUMENTS_LISTED_FROM = 6
_KERNEL_CALLS = ("layer/handlers", "layer/file_calls")
"""Modules whose methods are called with a request's fields, which FUSE has named."""


def _public_with_docstrings(
    module: Module, tree: ast.Module | ast.ClassDef
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """The public functions of *tree*; with a constructor's docstring goes its class's."""
    above = ast.get_docstring(tree) or ""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public_with_docstrings(module, node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if node.name == "__init__":
                yield node, f"{above}\n\n{text}"
            elif not node.name.startswith("_") and module.name not in _KERNEL_CALLS:
                yield node, text


def _listed(docstring: str) -> set[str]:
    """The names in the list of arguments: one entry may have several."""
    part = docstring.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+(?:, \w+)*): \S", part, re.MULTILINE)
    return {name for entry in entries for name in entry.split(", ")}


def test_many_arguments_are_listed() -> None:
    """Those of each public function with six or more, but of commands, whose options have help."""
    found = []
    for module in _modules():
        if module.room == "cli":
            continue
        for node, docstring in _public_with_docstrings(module, module.tree):
            arguments = node.args
            given = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            names = {one.arg for one in given} - {"self", "cls"}
            lacking = sorted(names - _listed(docstring))
            if len(names) >= _ARGUMENTS_LISTED_FROM and lacking:
                found.append(f"{module.name}: {node.name}: {', '.join(lacking)}")
    assert found == []


def test_code_and_pages_name_who_acts() -> None:
    """The caller, a peer, the kernel, an admin: somebody could be any of them."""
    nameless = re.compile(r"\b(somebody|someone|nobody|whoever)\b", re.IGNORECASE)
    the_user = re.compile(r"is nobody here|the user nobody")
    texts = {module.name: module.text for module in _modules()}
    for path in (*_PACKAGE.rglob("*.md"), _TOP / "README.md"):
        texts[path.name] = path.read_text()
    assert [
        f"{name}: {line.strip()}"
        for name, text in texts.items()
        for line in text.splitlines()
        if nameless.search(line) and not the_user.search(line)
    ] == []
    # (Here "SOMEBODY" is a user.)
    nameless = re.compile(r"\b([Ss]omebody|[Ss]omeone|[Nn]obody|[Ww]hoever)\b")
    assert [
        f"{name}: {text.splitlines()[0]}"
        for name, tree in _other_trees()
        for text in _docstrings(tree)
        if nameless.search(text) and not the_user.search(text) and "test_tidy" not in name
    ] == []


def test_the_page_on_concurrency_names_every_task() -> None:
    """Those that the layer's process starts, by their functions."""
    page = (_PACKAGE / "layer/CONCURRENCY.md").read_text()
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
    for module in _modules():
        own_processes = ("node/metrics_server", "node/witness_process", "replication/witness")
        if module.room in ("agent", "console") or module.name in own_processes:
            continue
        for call in re.findall(r"\.(?:start_soon|start)\(\s*([\w.]+)", module.text):
            name = call.rpartition(".")[2]
            if name not in own and not _is_named(name, page):
                missing.append(f"{module.name}: {call}")
    assert missing == []


_WORDS_GONE = frozenset(
    (
        *(
            "settle",
            "settles",
            "settled",
            "settling",
            "stretches",
            "news",
            "hurry",
            "updater",
            "complaint",
        ),
        *("complaints", "unborn", "restless", "hands", "ages", "gather"),
    )
)
"""Words that names once had, for which there are better ones, in the glossary or the field."""


def _identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name


def test_names_have_no_words_that_are_gone() -> None:
    found = []
    for where, tree in (*_package_trees(), *_other_trees()):
        for name in set(_identifiers(tree)):
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
            if words & _WORDS_GONE:
                found.append(f"{where}: {name}")
    assert found == []


_TELLING_NAMES_MAX = 72
"""The number of the package's names, each once a module, that may still have ``tell`` or ``told``
in them: the words for that are report, record, notify, announce, known. May only shrink."""


def test_names_report_instead_of_telling() -> None:
    telling = [
        f"{where}: {name}"
        for where, tree in _package_trees()
        for name in sorted(set(_identifiers(tree)))
        if re.search(r"(?<![a-z])(tells?|told|telling)(?![a-z])", name.lower())
    ]
    names = {"names that tell": len(telling)}
    assert _over(names, 0, {"names that tell": _TELLING_NAMES_MAX}, slack=30) == []
    assert [one for one in telling if re.search(r": _?[A-Z]", one)] == []


@cache
def _texts() -> dict[str, str]:
    """All modules and pages, of tests and scripts too, by their names."""
    texts = {module.name: module.text for module in _modules()}
    for path in (*_PACKAGE.rglob("*.md"), *_TOP.glob("*.md")):
        texts[path.name] = path.read_text()
    for top in ("tests", "scripts"):
        for path in (_TOP / top).rglob("*.py"):
            texts[str(path.relative_to(_TOP))] = path.read_text()
    return texts


def test_a_reason_begins_with_because() -> None:
    """And not with "for", which is read as "for whom" or "how long" first. Only where the next
    word leaves no doubt."""
    reason = re.compile(r"[,;] for (it|they|he|there|neither|that is)\b +(\w+)")
    assert [
        f"{name}: {match[0]}" for name, text in _texts().items() for match in reason.finditer(text)
    ] == []


def test_a_crash_is_of_a_process_or_of_the_system() -> None:
    """The two words of the glossary; a process is killed where that is what a person does."""
    other = re.compile(
        r"(killed\s+process(?:es)?|lost\s+machine|machine\s+(?:was|is)\s+lost"
        r"|loss\s+of\s+(?:a|the)\s+machine"
        r"|crash\s+of\s+the\s+(?:layer|machine))\b",
        re.IGNORECASE,
    )
    own = "tests/unit/test_tidy.py"
    found = {
        f"{name}: {match[0]}" for name, text in _texts().items() for match in other.finditer(text)
    }
    assert sorted(one for one in found if not one.startswith(own)) == []


def test_nothing_is_left_for_later() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=_TOP, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("this is no checkout")
    later = re.compile(rb"\b(TO" + rb"DO|FIX" + rb"ME|XX" + rb"X)\b")
    found = []
    for name in listing.stdout.split("\0"):
        path = _TOP / name
        if path.is_file() and later.search(path.read_bytes()):
            found.append(name)
    assert found == []
