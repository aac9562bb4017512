"""What constructors take, read from their source with ast: nothing is imported, and torch least of all.

It says less than the parser of jsonargparse, which reads the same constructors, and None where it is not sure: what it
does not know is left to that one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OWN = ("megasr", "data_pipelines", "ablations")
UNKNOWN = object()  # a default that is no literal
_NUMBERS = {"int": int, "float": float}
_BOOLEANS = {"true", "false", "yes", "no", "on", "off"}


@dataclass(frozen=True)
class Parameter:
    """An argument of a constructor.

    Attributes:
        module: where it is declared: names in the annotation are those of that file.
        annotation: its type; None when it has none.
        default: its value when it is not given, UNKNOWN when that is no literal.
        required: it has no default.
    """

    module: str
    annotation: ast.expr | None
    default: Any = UNKNOWN
    required: bool = False

    def alternatives(self) -> list[ast.expr]:
        """The types of a union, of any other annotation itself."""
        return [] if self.annotation is None else list(_alternatives(self.module, self.annotation))

    def fields(self) -> dict[str, Parameter] | None:
        """The arguments of the project's own class that it holds; None when it holds something else."""
        for annotation in self.alternatives():
            if isinstance(annotation, ast.Name) and (found := _find(self.module, annotation.id)):
                module, node = found
                if module.split(".")[0] in OWN and isinstance(node, ast.ClassDef):
                    return parameters(module, node.name)
        return None

    def holds_names(self) -> bool:
        """Whether it is a list of names, as that of guidance types."""
        return any(ast.unparse(a) in ("tuple[str, ...]", "list[str]") for a in self.alternatives())

    def refuses(self, value: Any) -> str:
        """What it has to be, in words, when a string cannot be it; "" when it can, or that is not known."""
        words: list[str] = []
        text = value.strip("'\" ") if isinstance(value, str) else None
        if text is None or not self.alternatives():
            return ""
        for annotation in self.alternatives():
            name = ast.unparse(annotation)
            if name in _NUMBERS and not _is_number(text):
                words.append("a number" if name == "float" else "a whole number")
            elif name == "bool" and text.lower() not in _BOOLEANS:
                words.append("true or false")
            elif name == "None" and text.lower() not in ("null", "none", "~", ""):
                continue
            elif name.startswith("Literal[") and text not in (choices := _literals(annotation)):
                words.append(f"one of {', '.join(choices)}")
            else:
                return ""
        return " or ".join(dict.fromkeys(words))


def _is_number(text: str) -> bool:
    import yaml

    from megasr.configs import load_yaml

    try:
        if isinstance(load_yaml(text), int | float):
            return True
        float(text)
    except (ValueError, yaml.YAMLError):
        return False
    return True


def _literals(annotation: ast.expr) -> list[str]:
    choices = annotation.slice if isinstance(annotation, ast.Subscript) else annotation
    nodes = choices.elts if isinstance(choices, ast.Tuple) else [choices]
    return [str(node.value) for node in nodes if isinstance(node, ast.Constant)]


def _alternatives(module: str, annotation: ast.expr) -> Iterator[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _alternatives(module, annotation.left)
        yield from _alternatives(module, annotation.right)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Union", "Optional"):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        for one in inner:
            yield from _alternatives(module, one)
        if ast.unparse(annotation.value) == "Optional":
            yield ast.Constant(None)
    elif isinstance(annotation, ast.Name) and isinstance(
        found := (_find(module, annotation.id) or (0, 0))[1], ast.expr
    ):
        yield found  # another name for a type
    else:
        yield annotation


@cache
def parameters(module: str, name: str) -> dict[str, Parameter] | None:
    """Name -> argument of the constructor of a class; None when that cannot be known.

    Those that a constructor passes on to its base class with ** are among them.
    """
    module, node = _find(module, name) or (module, None)
    if not isinstance(node, ast.ClassDef):
        return None
    own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if own is None and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return {
            n.target.id: _parameter(module, n.annotation, n.value)
            for n in node.body
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        }
    taken = {} if own is None else _of_constructor(module, own)
    if own is not None and own.args.kwarg is None:
        return taken
    given = _given_to_base(own) if own is not None else set()
    for base in node.bases:
        passed_on = parameters(module, base.id) if isinstance(base, ast.Name) else None
        if passed_on is None:
            return None
        taken |= {key: value for key, value in passed_on.items() if key not in taken and key not in given}
    return taken


def _given_to_base(constructor: ast.FunctionDef) -> set[str | None]:
    """What a constructor gives its base class itself, so that it cannot be passed on."""
    found = (node for node in ast.walk(constructor) if isinstance(node, ast.Call))
    return {word.arg for call in found if ast.unparse(call.func) == "super().__init__" for word in call.keywords}


def _of_constructor(module: str, node: ast.FunctionDef) -> dict[str, Parameter]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    return {
        argument.arg: _parameter(module, argument.annotation, value)
        for argument, value in pairs
        if argument.arg != "self"
    }


def _parameter(module: str, annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    try:
        return Parameter(module, annotation, UNKNOWN if default is None else ast.literal_eval(default), default is None)
    except ValueError:
        return Parameter(module, annotation)


def arguments_of(module: str, class_name: str, function: str) -> set[str]:
    """Names of the arguments of a method; none when it is not there."""
    found = _find(module, class_name)
    body = found[1].body if found and isinstance(found[1], ast.ClassDef) else []
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function]
    return set(_of_constructor(module, functions[0])) if functions else set()


def calls(module: str, class_name: str) -> Iterator[tuple[list[Any], ast.Call]]:
    """(the literals among its positional arguments, the call) of every call of a class in a file."""
    for node in ast.walk(_tree(module) or ast.Module([], [])):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == class_name:
            yield [a.value for a in node.args if isinstance(a, ast.Constant)], node


def exported(module: str) -> list[str]:
    """`__all__` of a file."""
    found = _find(module, "__all__")
    return list(ast.literal_eval(found[1])) if found and isinstance(found[1], ast.expr) else []


@cache
def _tree(module: str) -> ast.Module | None:
    package, *rest = module.split(".")
    try:
        spec = find_spec(package)  # of a package in a package it would import the first
        folder = Path(next(iter(spec.submodule_search_locations or [])), *rest) if spec else Path()
        path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        return ast.parse(path.read_text(encoding="utf-8"))
    except (ImportError, OSError, ValueError, SyntaxError, StopIteration):
        return None


@cache
def _find(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr] | None:
    """The class or the value of that name in a file, or where that has it from; None when it is neither."""
    tree = _tree(module)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
    return None
