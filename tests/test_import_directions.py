"""Which package may import which: dependencies point inward, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "reader",
    "protocol",
    "broker",
    "releases",
    "edge_agent",
    "cloud_worker",
    "publisher",
    "elma",
}

# What stands on the packages: it may import all of them, and none of them may import it.
ABOVE = {"deploy", "benchmarks", "examples", "tests"}

# What a package may import of ours besides itself, and why not more. A rule for a sub-package
# stands before the rule for the package around it.
RULES: dict[str, tuple[set[str], str]] = {
    "cloud_worker.training": (
        {"reader"},
        "training needs the network only; it must run where there is no broker and no keys",
    ),
    "reader": (set(), "the network must be usable, and testable, without any wire"),
    "protocol": (set(), "what crosses the wire must not depend on what computes it or carries it"),
    "broker": ({"protocol"}, "the broker carries bytes and topics and knows nothing of models"),
    "releases": (
        {"reader", "protocol", "broker"},
        "device and worker share it, so it knows neither of them",
    ),
    "edge_agent": (
        {"reader", "protocol", "broker", "releases"},
        "a device must install without the worker, and the command line stands above both",
    ),
    "cloud_worker": (
        {"reader", "protocol", "broker", "releases"},
        "a worker must install without the device, and the command line stands above both",
    ),
    "publisher": (
        {"reader", "protocol", "broker", "releases"},
        "whoever holds the signing key must need neither a device nor a worker",
    ),
    "elma": (PACKAGES, "the command line puts all parts together"),
}


def test_every_package_has_a_rule_and_code() -> None:
    assert set(RULES) >= PACKAGES
    for package in PACKAGES:
        assert list((ROOT / package).glob("*.py")), f"{package}/ holds no Python file"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_imports_only_what_lies_further_in(package: str) -> None:
    violations = [
        f"{file.relative_to(ROOT)}:{line} imports {imported}: {rule_of(file)[1]}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for line, imported in imports_of(file.read_text(encoding="utf-8"), module_name(file))
        if is_forbidden(imported, package, rule_of(file)[0], module_name(file))
    ]
    assert not violations, "\n".join(violations)


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import reader.model as m\n"
        "def f():\n"
        "    from broker import session\n"
        "from . import b\n"
        "from ..x import y\n"
        "import importlib\n"
        "importlib.import_module('cloud_worker.batching')\n"
    )
    found = [imported for _, imported in sorted(imports_of(source, "edge_agent.inner.module"))]
    assert found == [
        "reader.model",
        "broker.session",
        "edge_agent.inner.b",
        "edge_agent.x.y",
        "importlib",
        "cloud_worker.batching",
    ]


def test_a_forbidden_import_is_noticed() -> None:
    allowed, _ = RULES["reader"]
    assert is_forbidden("protocol.topics", "reader", allowed, "reader.model")
    assert not is_forbidden("reader.spans", "reader", allowed, "reader.model")
    assert not is_forbidden("torch.nn", "reader", allowed, "reader.model")
    allowed, _ = RULES["cloud_worker.training"]
    assert is_forbidden("protocol", "cloud_worker", allowed, "cloud_worker.training.loop")
    assert is_forbidden(
        "cloud_worker.service", "cloud_worker", allowed, "cloud_worker.training.loop"
    )
    allowed, _ = RULES["elma"]
    assert is_forbidden("deploy.watch.catalogue", "elma", allowed, "elma.commands.monitor")


def test_no_two_modules_need_each_other_to_be_imported() -> None:
    modules = {
        module_name(file).removesuffix(".__init__"): file.read_text(encoding="utf-8")
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
    }
    needed = {name: at_import(source) & set(modules) - {name} for name, source in modules.items()}
    # Take away what needs nothing any more, until only circles, and what needs them, are left.
    while free := {name for name, others in needed.items() if not others}:
        needed = {name: others - free for name, others in needed.items() if name not in free}
    assert not needed, f"these import each other: {sorted(needed)}"


def test_what_a_module_needs_at_its_import_is_found() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "from broker import session\n"
        "import reader.model\n"
        "if TYPE_CHECKING:\n"
        "    from broker import agent\n"
        "def f():\n"
        "    from broker import run\n"
    )
    needed = at_import(source)
    assert {"broker", "broker.session", "reader.model"} <= needed
    assert not needed & {"broker.agent", "broker.run"}


def rule_of(file: Path) -> tuple[set[str], str]:
    """The first rule whose package holds the file."""
    name = module_name(file)
    return next(rule for package, rule in RULES.items() if f"{name}.".startswith(f"{package}."))


def is_forbidden(imported: str, package: str, allowed: set[str], importer: str) -> bool:
    """Whether `importer`, which lies in `package`, must not import the module `imported`."""
    top = imported.split(".")[0]
    if top in ABOVE:
        return True
    if top not in PACKAGES:
        return False
    if top == package:
        inner = "cloud_worker.training"
        return importer.startswith(inner) and not f"{imported}.".startswith(f"{inner}.")
    return top not in allowed


def module_name(file: Path) -> str:
    """`reader/model.py` -> `reader.model`; a package's `__init__.py` keeps that last part."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imports_of(source: str, importer: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that the source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = importer.split(".")[: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"
        elif isinstance(node, ast.Call) and _is_import_module(node.func):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def at_import(source: str) -> set[str]:
    """What a module imports when it is imported itself, and the packages of those names; what only
    type checkers or functions import is no part of it."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _is_import_module(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}
