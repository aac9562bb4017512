"""JSON Schema of YAML configurations, for editors and for early checks.

It is read with ast from the sources of the constructors that jsonargparse reads: nothing is imported, so it takes a
fraction of a second. Where a type is not known, anything is allowed ({}).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megasr.plugins import OWN

Schema = dict[str, Any]
DATA_MODULES = "data_pipelines.datamodules"
SECTIONS = {
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
    "model": ("megasr.training.module", "MegaSRModule"),
    "evaluation": ("megasr.training.protocol_metrics", "ProtocolMetrics"),
    "monitor": ("megasr.training.monitor", "TrainingMonitor"),
}
PRETRAINING = {"trainer": SECTIONS["trainer"], "export": ("megasr.pretraining.module", "Export")}
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "None": "null", "dict": "object"}


def config_schema(command: str) -> Schema:
    """The schema of a configuration file of `fit`, `validate`, `test`, `pretrain` or `study`."""
    sections = PRETRAINING if command == "pretrain" else SECTIONS
    more: Schema = {name: {} for name in ("seed_everything", "ckpt_path", "weights_only", "verbose", "model")}
    more |= {"allow_changed_config": {"type": "boolean"}, "data": _data_schema()}
    more |= {"study": {"type": "object"}} if command == "study" else {}
    properties = {**more, **{name: class_schema(*place) for name, place in sections.items()}}
    return {"$schema": "https://json-schema.org/draft-07/schema#", **_object(properties)}


def _data_schema() -> Schema:
    """A class name, or class_path and the arguments of that class."""
    names = data_modules()
    known: Schema = {"anyOf": [{"enum": names}, {"pattern": r"\."}], "type": "string"}
    arguments = [
        {
            "if": {"properties": {"class_path": {"enum": [name, f"{DATA_MODULES}.{name}"]}}},
            "then": {"properties": {"init_args": class_schema(DATA_MODULES, name)}},
        }
        for name in names
    ]
    chosen = {"type": "object", "properties": {"class_path": known, "init_args": {}}, "required": ["class_path"]}
    return {"anyOf": [known, {**chosen, "allOf": arguments}]}


@cache
def class_schema(module: str, name: str) -> Schema:
    """The arguments of a class's constructor; {} when they cannot be known.

    Arguments that a constructor passes on to its base class with ** are among them.
    """
    module, node = _find(module, name) or (module, None)
    if not isinstance(node, ast.ClassDef):
        return {}
    constructor = _method(node, "__init__")
    if constructor is not None:
        properties, required = _arguments(module, constructor)
    elif any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        properties = {ast.unparse(f.target): _property(module, f.annotation, f.value) for f in fields}
        required = [ast.unparse(f.target) for f in fields if f.value is None]
    else:
        properties, required = {}, []
    if properties and (constructor is None or constructor.args.kwarg is None):
        return _object(_described(node, properties), required)
    for base in node.bases:
        inherited = class_schema(module, base.id) if isinstance(base, ast.Name) else {}
        if "properties" not in inherited:
            return {}
        properties = inherited["properties"] | properties
    return _object(_described(node, properties), required)


def data_modules() -> list[str]:
    """The names of the data modules in data_pipelines.datamodules."""
    _, exported = _find(DATA_MODULES, "__all__") or ("", None)
    names = ast.literal_eval(exported) if isinstance(exported, ast.expr) else []
    return [name for name in names if name.endswith("DataModule")]


def strings_in_calls(module: str, name: str) -> Iterator[list[Any]]:
    """The literals among the positional arguments of every call of `name` in a file: what it registers."""
    for node in ast.walk(_tree(module) or ast.Module([], [])):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield [argument.value for argument in node.args if isinstance(argument, ast.Constant)]


def at(schema: Schema, path: Sequence[str]) -> Schema | None:
    """The schema of the value at a path of keys: {} where anything is allowed, None where there is no such key."""
    for name in path:
        inside = next((choice for choice in _choices(schema) if "properties" in choice), None)
        if inside is None or name in ("class_path", "init_args", "dict_kwargs", "help"):
            return {}
        if name not in inside["properties"]:
            return None
        schema = inside["properties"][name]
    return schema


def all_keys(schema: Schema) -> Iterator[str]:
    """Every dotted key."""
    for choice in _choices(schema):
        for name, inside in choice.get("properties", {}).items():
            yield from (name, *(f"{name}.{key}" for key in all_keys(inside)))


def refuses(schema: Schema, text: str) -> list[str]:
    """The words that a value may be, when this text is none of them; empty when it may be right."""
    words = [str(word) for choice in _choices(schema) for word in choice.get("enum", ())]
    only_words = all("enum" in choice or choice.get("type") == "null" for choice in _choices(schema))
    return words if only_words and text.strip("'\" ") not in (*words, "null", "None", "") else []


def _choices(schema: Schema) -> list[Schema]:
    return list(schema.get("anyOf", [schema]))


def _object(properties: Mapping[str, Schema], required: list[str] | None = None) -> Schema:
    appended: Schema = {r"\+$": {}}  # KEY+ appends to a list
    return {
        "type": "object",
        "properties": dict(properties),
        "patternProperties": appended,
        "additionalProperties": False,
        "required": required or [],
    }


def _described(node: ast.ClassDef, properties: dict[str, Schema]) -> dict[str, Schema]:
    """Properties with what the docstrings of the class and of its constructor say of them."""
    from docstring_parser import parse

    constructor = _method(node, "__init__")
    for text in filter(None, (ast.get_docstring(n) for n in (node, constructor) if n is not None)):
        for argument in parse(text).params:
            if argument.arg_name in properties and argument.description:
                properties[argument.arg_name] = {"description": argument.description} | properties[argument.arg_name]
    return properties


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _arguments(module: str, node: ast.FunctionDef) -> tuple[dict[str, Schema], list[str]]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    pairs = [(argument, default) for argument, default in pairs if argument.arg != "self"]
    required = [argument.arg for argument, default in pairs if default is None]
    return {argument.arg: _property(module, argument.annotation, default) for argument, default in pairs}, required


def _property(module: str, annotation: ast.expr | None, default: ast.expr | None) -> Schema:
    choices = [] if annotation is None else list(_types(module, annotation))
    schema = {} if not all(choices) or not choices else choices[0] if len(choices) == 1 else {"anyOf": choices}
    try:
        return schema if default is None else {**schema, "default": ast.literal_eval(default)}
    except ValueError:
        return schema


def _types(module: str, annotation: ast.expr) -> Iterator[Schema]:
    """The schemas of the types of a union, of any other annotation its own."""
    text = ast.unparse(annotation)
    if isinstance(annotation, ast.BinOp):
        yield from (*_types(module, annotation.left), *_types(module, annotation.right))
    elif isinstance(annotation, ast.Subscript):
        inside = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        kind = ast.unparse(annotation.value)
        if kind in ("Union", "Optional"):
            for one in inside:
                yield from _types(module, one)
            yield from [{"type": "null"}] if kind == "Optional" else []
        elif kind == "Literal":
            yield {"enum": [node.value for node in inside if isinstance(node, ast.Constant)]}
        else:
            yield {"type": "array"} if kind in ("list", "tuple") else {}
    elif text in _TYPES:
        yield {"type": _TYPES[text]}
    else:
        yield from _named(module, text)


def _named(module: str, name: str) -> Iterator[Schema]:
    """A class of this project, or what another name stands for."""
    module, node = _find(module, name) or (module, None)
    if isinstance(node, ast.expr):
        yield from _types(module, node)
    elif node is not None and module.split(".")[0] in OWN:
        yield class_schema(module, name)
    else:
        yield {}


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
    """(module, class or value) of a name in a file, or in the one it is imported from; None when it is neither."""
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
