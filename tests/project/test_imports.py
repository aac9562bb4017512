"""Imports run one way: megasr <- data_pipelines <- ablations, and in no circle."""

from __future__ import annotations

import sys

import pytest

from tests.helpers.sources import PACKAGES, ROOT, imports, sources

# megasr.cli and megasr.commands put the whole program together; nothing else in megasr may know the other packages.
COMPOSITION_ROOT = ("megasr.cli", "megasr.commands")
# What imports nothing but the standard library when it is imported itself.
LIGHT = (
    "megasr.console",
    "megasr.errors",
    "megasr.files",
    "megasr.errors",
    "megasr.plugins",
    "megasr.weights",
    "megasr.training.folders",
)
# What images-in, batches-out may use of the model library.
LEAVES = (
    "megasr.batch",
    "megasr.images",
    "megasr.image_decoding",
    "megasr.rng",
    "megasr.weights",
    "megasr.errors",
    "megasr.files",
    "megasr.plugins",
    "megasr.provenance",
    "megasr.guidance",
    "megasr.console",
)


def _inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _forbidden(name: str) -> list[str]:
    def allowed(target: str) -> bool:
        if _inside(name, COMPOSITION_ROOT):
            return True
        if _inside(target, COMPOSITION_ROOT):
            return False
        if _inside(name, ("megasr",)):
            return _inside(target, ("megasr",))
        if _inside(name, ("data_pipelines",)):
            return target == "megasr" or _inside(target, ("data_pipelines", *LEAVES))
        return True

    return [
        f"{name}:{line} imports {target}"
        for target, line in imports(name)
        if _inside(target, PACKAGES) and not allowed(target)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    names = [name for name in sources() if _inside(name, (package,))]
    assert names
    assert not [line for name in names for line in _forbidden(name)]


def test_only_the_heavy_commands_import_heavy_things_at_the_top() -> None:
    heavy_modules = {"megasr.commands.lightning_cli"}
    light = [n for n in sources() if _inside(n, COMPOSITION_ROOT) and n not in heavy_modules]
    heavy = [
        f"{name}:{line} imports {target}"
        for name in light
        for target, line in imports(name, at_import_time=True)
        if target.split(".")[0] not in sys.stdlib_module_names
        and not _inside(target, (*COMPOSITION_ROOT, *LIGHT))
        and target != "megasr"
    ]
    assert not heavy


@pytest.mark.parametrize("command", ["megasr.commands.lightning_cli", "megasr.inference.upscale"])
def test_what_takes_seconds_to_import_waits_until_it_is_used(command: str) -> None:
    """A training starts without the libraries of its tables, logs and metrics; an upscaling without Lightning too."""
    late = {"pandas", "wandb", "pyiqa", "gradio"} | ({"lightning"} if "upscale" in command else set())
    reached, waiting = set[str](), [command]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        targets = {target for target, _ in imports(name, at_import_time=True)}
        assert not {target.partition(".")[0] for target in targets} & late, name
        waiting += (targets & sources().keys()) - reached
    assert len(reached) > 10


def test_imports_have_no_cycle() -> None:
    """What functions and TYPE_CHECKING import counts: two modules that need each other are one, or share a third."""
    graph = {name: {target for target, _ in imports(name) if target in sources()} for name in sources()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in finished:
            for target in sorted(graph[name] - {name}):
                visit(target, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_every_package_folder_is_a_package() -> None:
    folders = {path.parent for path, _ in sources().values()}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
