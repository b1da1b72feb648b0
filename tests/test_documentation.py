"""What the documentation names exists: files, linked pages, functions in the tables of places."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *(
        page
        for folder in ("docs", "examples", "deploy", "benchmarks")
        for page in (ROOT / folder).rglob("*.md")
    ),
]
# `reader/walk.py: walk, finish` in a table of docs/architecture.md.
CODE_PLACE = re.compile(r"`([\w/]+\.py)(?:: ([\w., ]+))?`")


def test_there_are_pages_to_check() -> None:
    assert {"README.md", "architecture.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists()
    ]
    assert not missing, f"{page.relative_to(ROOT)} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_place_in_the_code_exists(page: Path) -> None:
    problems = []
    for file_name, names in CODE_PLACE.findall(page.read_text(encoding="utf-8")):
        if "/" not in file_name:
            continue
        file = ROOT / file_name
        if not file.is_file():
            problems.append(f"{file_name} does not exist")
            continue
        defined = defined_names(file.read_text(encoding="utf-8"))
        problems += [
            f"{file_name} defines no {name.strip()}"
            for name in names.split(",")
            if name.strip() and name.strip() not in defined
        ]
    assert not problems, "\n".join(problems)


def test_the_decision_records_are_all_listed_dated_and_decided() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for record in folder.glob("[0-9]*.md"):
        text = record.read_text(encoding="utf-8")
        assert record.name in index, f"{record.name} is not listed"
        assert re.search(r"^Date: \d{4}-\d\d-\d\d\. Status: \w+", text, re.MULTILINE), record.name
        assert "## Outcome" in text, record.name


def defined_names(source: str) -> set[str]:
    """Functions, classes, methods as Class.method, and assigned names of a module."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            names |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names
