"""Budgets that keep the code readable, and the rule that no draw comes from a global generator."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.sources import ROOT, sources

MAX_FILE_LINES = 600  # a file is one idea, whole
MAX_FUNCTION_LINES = 60
Function = ast.FunctionDef | ast.AsyncFunctionDef
MODULES = sorted(sources())
FOLDERS = ("megasr", "data_pipelines", "ablations", "tests", "experiments")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TORCH_DRAWS = {
    "rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson",
}  # fmt: skip
TENSOR_DRAWS = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "geometric_"}
# These take no generator at all.
ALWAYS_GLOBAL = {"rand_like", "randn_like", "randint_like", "manual_seed", "seed"}
NUMPY_GENERATORS = {"Generator", "default_rng", "SeedSequence", "PCG64", "BitGenerator"}


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{path.relative_to(ROOT)} has {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short_and_public_ones_typed(module: str) -> None:
    found = []
    for function in _functions(sources()[module][1]):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            found.append(f"{function.name} has {lines} lines")
        if not function.name.startswith("_") or function.name.startswith("__"):
            found += [f"{function.name}: {what} has no type" for what in _untyped(function)]
    assert not found


def _untyped(function: Function) -> Iterator[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for argument in named:
        if argument is not None and argument.annotation is None and argument.arg not in ("self", "cls"):
            yield argument.arg
    if function.returns is None:
        yield "the result"


@pytest.mark.parametrize("module", MODULES)
def test_no_draw_from_a_global_generator(module: str) -> None:
    path, tree = sources()[module]
    assert not [f"{path.relative_to(ROOT)}:{line} {what}" for line, what in global_draws(tree)]


def _outside_forked_rng(node: ast.AST) -> Iterator[ast.AST]:
    """Every node, but not what `with torch.random.fork_rng(...)` keeps to itself (weights are initialised there)."""
    if isinstance(node, ast.With) and any("fork_rng" in ast.dump(item.context_expr) for item in node.items):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside_forked_rng(child)


def global_draws(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, call) of everything that draws from, or seeds, Python's, NumPy's or torch's global generator."""
    for node in _outside_forked_rng(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if "random" in modules or "numpy.random" in modules:
                yield node.lineno, "import of a module of global generators"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
            keyed = any(keyword.arg == "generator" for keyword in node.keywords)
            numpy_global = owner in ("np.random", "numpy.random") and name not in NUMPY_GENERATORS
            torch_global = owner in ("torch", "torch.random", "torch.cuda") and name in ALWAYS_GLOBAL
            if numpy_global or torch_global:
                yield node.lineno, f"{owner}.{name}"
            elif owner == "torch" and name in TORCH_DRAWS and not keyed:
                yield node.lineno, f"torch.{name} without generator"
            elif name in TENSOR_DRAWS and not keyed and not owner.endswith("init"):
                yield node.lineno, f".{name} without generator"


@pytest.mark.parametrize(
    "code",
    [
        "import random",
        "from numpy.random import rand",
        "np.random.rand(3)",
        "np.random.seed(0)",
        "torch.randn(3)",
        "torch.randn_like(x)",
        "torch.manual_seed(0)",
        "x.normal_()",
        "torch.randperm(4)",
        "with torch.no_grad():\n    torch.manual_seed(1)",
    ],
)
def test_the_search_finds(code: str) -> None:
    assert list(global_draws(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "np.random.default_rng(1)",
        "torch.randn(3, generator=g)",
        "nn.init.normal_(w)",
        "rng.normal(0, 1)",
        "torch.Generator().manual_seed(3)",
        "x.normal_(generator=g)",
        "with torch.random.fork_rng():\n    torch.manual_seed(1)",
    ],
)
def test_the_search_leaves_alone(code: str) -> None:
    assert not list(global_draws(ast.parse(code)))
