"""The table: rows from processes of their own, kept from run to run, put into a document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloud_worker.compress import table
from cloud_worker.compress.measuring import RowRequest
from cloud_worker.compress.steps import CompressionError
from tests.cloud_worker.training.small_runs import write_questions
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_questions(tmp_path_factory.mktemp("data") / "dev.json")
    document = json.loads(path.read_text())
    paragraphs = document["data"][0]["paragraphs"]
    document["data"] = [
        {"title": "a", "paragraphs": paragraphs[:20]},
        {"title": "b", "paragraphs": paragraphs[20:]},
    ]
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory, data: Path) -> RowRequest:
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", layers=3, groups=3)
    (folder / "exits.json").unlink()
    return RowRequest(
        str(folder), str(data), calibrate=True, timed_questions=4, engine="torch", precision="fp32"
    )


@pytest.fixture(scope="module")
def row(request_: RowRequest) -> dict[str, object]:
    return table.measure_in_a_process(request_)


def test_a_row_holds_every_column(row: dict[str, object]) -> None:
    lines = table.markdown([row]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:2] == ["tiny", "none"]
    assert all(0 <= float(cell) <= 100 for cell in cells[3:9])
    assert 1 <= float(cells[10]) <= 3
    assert 20 < float(cells[13]) < 2000
    assert "30 questions" in lines[-1]


def test_a_row_is_found_again_until_the_weights_change(
    row: dict[str, object], request_: RowRequest, tmp_path: Path
) -> None:
    table.write_rows(tmp_path / "rows.json", [row])
    rows = table.read_rows(tmp_path / "rows.json")
    assert table.find_row(rows, request_) == row
    assert str(Path(request_.folder).parent) not in (tmp_path / "rows.json").read_text()
    settings = Path(request_.folder) / "exits.json"
    before = settings.read_text()
    settings.write_text(before + "\n")
    assert table.find_row(rows, request_) is None
    settings.write_text(before)


def test_a_document_gets_the_table_between_its_markers(
    row: dict[str, object], tmp_path: Path
) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.write_between_markers(document, table.markdown([row]))
    text = document.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n| model |")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text
    with pytest.raises(CompressionError, match="does not have the lines"):
        table.write_between_markers(tmp_path / "none.md", "")


def test_what_a_row_died_of_is_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompressionError, match=r"no config\.json"):
        table.measure_in_a_process(RowRequest(str(tmp_path / "empty"), str(data)))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"other": 1}')
    with pytest.raises(CompressionError, match="no compression table"):
        table.read_rows(tmp_path / "rows.json")
    assert table.read_rows(tmp_path / "missing.json") == []
