"""Finds where a module of the package assigns an attribute of an object whose class is another
module's. Types are taken from annotations and constructors, as far as these go; where they tell
nothing, an attribute counts as another module's if only classes of others have one of its name."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping

Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Class:
    """A class of the package, by its source."""

    def __init__(self, module: str, node: ast.ClassDef) -> None:
        self.module = module
        self.bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        self.types: dict[str, str] = {}
        """The names of the classes of its attributes, and of what its methods return."""
        self.attributes: set[str] = set()
        """The attributes that it sets itself, or declares."""
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                self._declare(part.target.id, _class_in(part.annotation))
            elif isinstance(part, Function):
                self.types.setdefault(part.name, _class_in(part.returns))
                self._look_into(part)

    def _look_into(self, method: Function) -> None:
        parameters = _parameters(method)
        for target, value, annotation in _assignments(method):
            if isinstance(target.value, ast.Name) and target.value.id == "self":
                name = _class_in(annotation) or _made_by(value)
                if not name and isinstance(value, ast.Name):
                    name = parameters.get(value.id, "")
                self._declare(target.attr, name)

    def _declare(self, attribute: str, type_: str) -> None:
        self.attributes.add(attribute)
        if type_:
            self.types[attribute] = type_


def _class_in(annotation: ast.expr | None) -> str:
    """The name of the class that *annotation* tells, or of the one beside None; or nothing."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):
        return _class_in(annotation.left)
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    return annotation.id if isinstance(annotation, ast.Name) else ""


def _made_by(value: ast.expr | None) -> str:
    """The name of the class whose constructor *value* calls, if its name looks like one's."""
    called = value.func if isinstance(value, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else ""
    name = called.id if isinstance(called, ast.Name) else name
    return name if name.lstrip("_")[:1].isupper() else ""


def _parameters(function: Function) -> dict[str, str]:
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return {one.arg: _class_in(one.annotation) for one in every}


def _assignments(
    tree: ast.AST,
) -> Iterator[tuple[ast.Attribute, ast.expr | None, ast.expr | None]]:
    """Each attribute that is assigned in *tree*, with the value and the annotation, if it has them
    for itself."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        value = annotation = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets, value = [node.target], node.value
            annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
        elif isinstance(node, ast.Delete):
            targets = node.targets
        for target in targets:
            if isinstance(target, ast.Tuple | ast.List):
                for one in target.elts:
                    if isinstance(one, ast.Attribute):
                        yield one, None, None
            elif isinstance(target, ast.Attribute):
                yield target, value, annotation


class _Scope:
    """The names in one function, a method of *of* or none's."""

    def __init__(self, classes: Mapping[str, _Class], of: str, function: Function) -> None:
        self._classes = classes
        self._names = _parameters(function)
        if of:
            self._names |= {"self": of, "cls": of}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
                if isinstance(target, ast.Name):
                    self._names.setdefault(target.id, self.type_of(node.value))

    def type_of(self, node: ast.expr) -> str:
        """The name of the class of *node*, or nothing."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, "")
        if isinstance(node, ast.Await):
            return self.type_of(node.value)
        if isinstance(node, ast.Call):
            return _made_by(node) or self.type_of(node.func)
        if isinstance(node, ast.Attribute):
            return self._declared(self.type_of(node.value), node.attr)
        return ""

    def _declared(self, class_: str, attribute: str) -> str:
        known = self._classes.get(class_)
        if known is None:
            return ""
        found = known.types.get(attribute)
        return found or next(filter(None, (self._declared(b, attribute) for b in known.bases)), "")

    def owner(self, class_: str, attribute: str) -> str | None:
        """The module of the class, of *class_* and its bases, that has *attribute*; None where none
        of the package has."""
        known = self._classes.get(class_)
        if known is None:
            return None
        if attribute in known.attributes:
            return known.module
        return next(filter(None, (self.owner(base, attribute) for base in known.bases)), None)


def assigned_from_outside(modules: Mapping[str, ast.Module]) -> Iterator[tuple[str, int, str]]:
    """Yields the module and line of each such assignment in *modules*, and the attribute, with the
    name of its class where that is known."""
    classes = {
        node.name: _Class(name, node)
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    having: defaultdict[str, set[str]] = defaultdict(set)
    for one in classes.values():
        for attribute in one.attributes:
            having[attribute].add(one.module)
    for name, tree in modules.items():
        for of, function in _functions_of(tree):
            scope = _Scope(classes, of, function)
            for target, _, _ in _assignments(function):
                base, attribute = target.value, target.attr
                if isinstance(base, ast.Name) and base.id in ("self", "cls"):
                    continue
                type_ = scope.type_of(base)
                owner = scope.owner(type_, attribute)
                is_others = owner is not None and owner != name
                if not type_ and owner is None:
                    is_others = bool(having[attribute]) and name not in having[attribute]
                if is_others:
                    yield name, target.lineno, f"{type_ or '?'}.{attribute}"


def _functions_of(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """The functions and methods of a module, each with the class that it is of; what is defined
    inside one goes with it."""
    for node in tree.body:
        if isinstance(node, Function):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.name, one) for one in node.body if isinstance(one, Function))
