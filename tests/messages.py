"""All messages that the package raises or warns, read from its source.

A message is a text in which ``...`` stands for what is only known when it runs. What an error says may come from far:
this follows names to their assignments, parameters to the calls, and calls to what a function returns.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HOLE = "..."
_GROWS = ("append", "extend")


class Source:
    """The functions and calls of a package, by name."""

    def __init__(self, folder: Path) -> None:
        self.functions: dict[str, list[ast.FunctionDef]] = {}
        self.calls: dict[str, list[ast.Call]] = {}
        self.constants: dict[str, str] = {}
        self.within: dict[ast.AST, ast.FunctionDef | None] = {}
        self.said: list[tuple[str, ast.expr]] = []
        for path in sorted(folder.rglob("*.py")):
            self._read(ast.parse(path.read_text()), None)

    def _read(self, node: ast.AST, function: ast.FunctionDef | None) -> None:
        self.within[node] = function
        if isinstance(node, ast.FunctionDef):
            self.functions.setdefault(node.name, []).append(node)
            function = node
        if isinstance(node, ast.Call):
            self.calls.setdefault(called(node), []).append(node)
            if called(node) == "warn" and len(node.args) > 1:
                self.said.append((ast.unparse(node.args[1]), node.args[0]))
            if called(node) == "add_note":
                self.said.append(("note", node.args[0]))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            self.said.append((called(node.exc), raised(node.exc)))
        if isinstance(node, ast.Assign) and function is None and isinstance(node.value, ast.Constant):
            self.constants[ast.unparse(node.targets[0])] = str(node.value.value)
        for child in ast.iter_child_nodes(node):
            self._read(child, function)

    def messages(self) -> dict[str, set[str]]:
        """Each message of three words or more, and the classes of the errors and warnings that say it."""
        found: dict[str, set[str]] = {}
        for kind, said in self.said:
            for text in map(normal, self.texts(said, frozenset())):
                if len(re.findall(r"\w{2,}", text)) > 2:
                    found.setdefault(text, set()).add(self._kind(kind))
        return found

    def _kind(self, name: str) -> str:
        """The class of an error that is made by calling this: a class, or a function that returns one."""
        for function in self.functions.get(name, ()):
            for made in (given.value for given in ast.walk(function) if isinstance(given, ast.Return)):
                if isinstance(made, ast.Call):
                    return called(made)
        return name

    def texts(self, node: ast.AST, seen: frozenset[ast.AST]) -> Iterator[str]:
        """What an expression may say; of a list, what each item may."""
        if node in seen:
            return
        seen |= {node}
        if isinstance(node, ast.Constant):
            yield str(node.value) if isinstance(node.value, str) else ""
        elif isinstance(node, ast.JoinedStr):
            first, *rest = node.values
            tail = "".join(map(self._part, rest))
            for head in self._heads(first, seen):
                yield head + tail
        elif isinstance(node, ast.BinOp):
            yield next(self.texts(node.left, seen), HOLE) + next(self.texts(node.right, seen), HOLE)
        elif isinstance(node, ast.Call):
            yield from self._of_call(node, seen)
        else:
            for part in self._parts(node):
                yield from self.texts(part, seen)

    def _part(self, part: ast.expr) -> str:
        """A part of an f-string: a constant text, or a hole."""
        if isinstance(part, ast.Constant):
            return str(part.value)
        known = self.constants.get(ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else "", HOLE)
        return known if " " in known else HOLE

    def _heads(self, first: ast.expr, seen: frozenset[ast.AST]) -> list[str]:
        """How a message begins, if that is known before it runs."""
        if isinstance(first, ast.Constant):
            return [first.value]
        known = [*self.texts(first.value, seen)] if isinstance(first, ast.FormattedValue) else []
        return [text for text in known if " " in text] or [HOLE]

    def _parts(self, node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.Name):
            yield from self._of_name(node)
        elif isinstance(node, ast.IfExp):
            yield from (node.body, node.orelse)
        elif isinstance(node, ast.BoolOp):
            yield from node.values
        elif isinstance(node, ast.NamedExpr | ast.Starred):
            yield node.value
        elif isinstance(node, ast.List | ast.Tuple):
            yield from node.elts
        elif isinstance(node, ast.ListComp | ast.GeneratorExp):
            yield node.elt

    def _of_call(self, node: ast.Call, seen: frozenset[ast.AST]) -> Iterator[str]:
        name = called(node)
        if name in ("bullets", "join", "list", "sorted", "fromkeys"):
            for argument in node.args:
                yield from self.texts(argument, seen)
        for function in self.functions.get(name, ()):
            if name != "bullets":
                for given in ast.walk(function):
                    if isinstance(given, ast.Return | ast.Yield) and given.value is not None:
                        value = given.value
                        yield from self.texts(raised(value) if isinstance(value, ast.Call) else value, seen)

    def _of_name(self, node: ast.Name) -> Iterator[ast.AST]:
        """What a name stands for in its function: what is assigned or appended to it, or what callers give."""
        function = self.within[node]
        if function is None:
            return
        for other in ast.walk(function):
            if isinstance(other, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and other.value:
                targets = other.targets if isinstance(other, ast.Assign) else [other.target]
                if any(isinstance(target, ast.Name) and target.id == node.id for target in targets):
                    yield other.value
            elif isinstance(other, ast.Call):
                yield from self._grown(other, node.id)
        names = [argument.arg for argument in function.args.args]
        if node.id in names:
            place = names.index(node.id) - (names[0] in ("self", "cls"))
            for call in self.calls.get(function.name, ()):
                yield from call.args[place : place + 1]
                yield from (keyword.value for keyword in call.keywords if keyword.arg == node.id)

    def _grown(self, call: ast.Call, name: str) -> Iterator[ast.expr]:
        """What a call appends to a list of this name: its own method, or a function that is given the list."""
        if called(call) in _GROWS and of(call) == name:
            yield from call.args
        for function in self.functions.get(called(call), ()):
            for parameter, given in zip(function.args.args, call.args, strict=False):
                if isinstance(given, ast.Name) and given.id == name:
                    for inner in (other for other in ast.walk(function) if isinstance(other, ast.Call)):
                        if called(inner) in _GROWS and of(inner) == parameter.arg:
                            yield from inner.args


def called(call: ast.Call) -> str:
    """The name that is called, without what stands before a dot."""
    return getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def of(call: ast.Call) -> str:
    """Of which name a method is called."""
    return getattr(getattr(call.func, "value", None), "id", "")


def raised(error: ast.expr) -> ast.expr:
    """The message of an error that is made here; otherwise the expression itself."""
    made = isinstance(error, ast.Call) and called(error).endswith(("Error", "Warning")) and error.args
    return error.args[0] if isinstance(error, ast.Call) and made else error


def normal(text: str) -> str:
    """A message with one space between words, and one hole for all that is not known between them."""
    return re.sub(r"'\.\.\.'|\"\.\.\.\"|\.{4,}", HOLE, " ".join(text.split()))
