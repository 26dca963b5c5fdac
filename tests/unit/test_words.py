"""The words of names, docstrings and pages keep to the glossary, and docstrings say what they must.
Each list of exceptions here may only shrink."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest

from tests.support.house import PACKAGE, TOP, Module, other_modules, over, package_modules

_OWN_NAME = "tests/unit/test_words"
"""The name of this module, which has the words that no other may have."""

_HEADLESS = re.compile(
    r"(What|Whatever|Whether|Why|Who|Whoever|Whom|Whose|How|Where|Wherever|Which|When|Of|See|As"
    r"|(?:Is|Are) called)\b",
    re.IGNORECASE,
)

_CLAUSE = re.compile(
    r"(For|After|Before|From|Without|By|In|So|On|With|Until|If|At|To|Than|That|Because|Since|While"
    r"|Once|Unless|Also|But|And|Or|Then|Between|Beyond|Below|Above|Into|Out|Through|Over|Under|Not"
    r"|Only|About|During|Within|There|All (?:that|of)|Those|Up to|Called|It)\b",
    re.IGNORECASE,
)
"""Further openings of a clause. A test's docstring may begin so, where it goes on from its name."""

_HALF = re.compile(r"(?:the|an?|its?|their|this|these)\b|.*(?:[,;]|\band)\Z", re.DOTALL)
"""A half of a sentence that two docstrings share. (Small first letters are those of names, too: of
a module, a call, a program.)"""


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


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    assert [
        f"{module.name}: {text.splitlines()[0]}"
        for module in (*package_modules(), *other_modules())
        for text in _docstrings(module.tree)
        if _HEADLESS.match(text)
        or _HALF.match(text)
        or (not module.name.startswith("tests/") and _CLAUSE.match(text))
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
        for module in package_modules()
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
    for module in package_modules():
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
    texts = {module.name: module.text for module in package_modules()}
    for path in (*PACKAGE.rglob("*.md"), TOP / "README.md"):
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
        f"{module.name}: {text.splitlines()[0]}"
        for module in other_modules()
        for text in _docstrings(module.tree)
        if nameless.search(text) and not the_user.search(text) and module.name != _OWN_NAME
    ] == []


_ACTORLESS = re.compile(
    r"\b(?:for|from|than|because|leaves|wakes?|serves|held by|given by|told by|and only) who\b"
    r"|\bwakes whom\b|\bwho is to begin\b|\bbe who opened\b|: who begins that\b"
    r"|[.:;,] (?:and |but )?who (?:asks for|waits|writes|copies|knows no|finds|changes|cannot)\b"
    r"|\bwho has (?:entered|only)\b|: who had\b|; who acknowledged\b",
    re.IGNORECASE,
)
"""A clause with "who" in place of an actor. (A question, as in "says who holds it", has one.)"""


def test_who_is_no_actor() -> None:
    texts = {module.name: module.text for module in package_modules()}
    for path in (*PACKAGE.rglob("*.md"), TOP / "README.md"):
        texts[path.name] = path.read_text()
    assert [
        f"{name}: {found[0]}"
        for name, text in texts.items()
        for found in _ACTORLESS.finditer(re.sub(r"\s+(?:# )?", " ", text))
    ] == []


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
    for module in (*package_modules(), *other_modules()):
        for name in set(_identifiers(module.tree)):
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
            if words & _WORDS_GONE:
                found.append(f"{module.name}: {name}")
    assert found == []


_TELLING_NAMES_MAX = 72
"""The number of the package's names, each once a module, that may still have ``tell`` or ``told``
in them: the words for that are report, record, notify, announce, known. May only shrink."""


def test_names_report_instead_of_telling() -> None:
    telling = [
        f"{module.name}: {name}"
        for module in package_modules()
        for name in sorted(set(_identifiers(module.tree)))
        if re.search(r"(?<![a-z])(tells?|told|telling)(?![a-z])", name.lower())
    ]
    names = {"names that tell": len(telling)}
    assert over(names, 0, {"names that tell": _TELLING_NAMES_MAX}, slack=30) == []
    assert [one for one in telling if re.search(r": _?[A-Z]", one)] == []


_TELLING_OPENING = re.compile(r"(tell|tells|telling|told|say|says|saying|said)\b", re.IGNORECASE)


def test_no_docstring_opens_with_telling() -> None:
    """The verbs for that are return, report, record, note, log, send; a test of truth opens with
    "Returns True if"."""
    assert [
        f"{module.name}: {text.splitlines()[0]}"
        for module in (*package_modules(), *other_modules())
        for text in _docstrings(module.tree)
        if _TELLING_OPENING.match(text)
    ] == []


_TELLING_WORDS_MAX = {"tell": 136, "say": 245}
"""The number of these words, in all their forms, that the package's docstrings may still have
(``ARCHITECTURE.md`` has the reason). May only shrink."""


def test_docstrings_report_instead_of_telling() -> None:
    forms = {
        "tell": re.compile(r"\b(tell|tells|telling|told)\b", re.IGNORECASE),
        "say": re.compile(r"\b(say|says|saying|said)\b", re.IGNORECASE),
    }
    texts = [text for module in package_modules() for text in _docstrings(module.tree)]
    counts = {word: sum(len(form.findall(text)) for text in texts) for word, form in forms.items()}
    assert over(counts, 0, _TELLING_WORDS_MAX, slack=30) == []


@cache
def _texts() -> dict[str, str]:
    """All modules and pages, of tests and scripts too, by their names."""
    texts = {module.name: module.text for module in (*package_modules(), *other_modules())}
    for path in (*PACKAGE.rglob("*.md"), *TOP.glob("*.md")):
        texts[path.name] = path.read_text()
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
    found = {
        f"{name}: {match[0]}" for name, text in _texts().items() for match in other.finditer(text)
    }
    assert sorted(one for one in found if not one.startswith(f"{_OWN_NAME}:")) == []


def test_nothing_is_left_for_later() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("this is no checkout")
    later = re.compile(rb"\b(TO" + rb"DO|FIX" + rb"ME|XX" + rb"X)\b")
    found = []
    for name in listing.stdout.split("\0"):
        path = TOP / name
        if path.is_file() and later.search(path.read_bytes()):
            found.append(name)
    assert found == []
