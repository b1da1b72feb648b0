"""Puts the stored results into the pages that show them, so that no figure is typed by hand.

    elma bench edge --data DEV.json --out benchmarks/results ...
    python benchmarks/report.py            # rewrites the blocks and the pictures
    python benchmarks/report.py --check    # exit status 1 where a page is not up to date

In: `benchmarks/results/*.json`. Out: the text between `<!-- result NAME -->` and
`<!-- end -->` in `README.md` and `benchmarks/README.md`, and pictures in `docs/figures`. A block
whose result is missing says so. Neighbours: `elma.bench` wrote the results and knows their tables.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elma.bench import (
    edge,
    frontier_report,
    limit,
    memory,
    release_bytes,
    wire,
    worker_report,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- result ([\w.-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Result = Mapping[str, Any]


def fleet_markdown(result: Result) -> str:
    """Table of `benchmarks.release_fleet`."""
    sent, transfers = result["published"], result["transfer_seconds"]
    wire = "; ".join(
        f"{clients} {one['bytes_each']:,} bytes each in {one['seconds']:.2f} s"
        for clients, one in result["wire_limit"].items()
    )
    rows = (
        (
            f"`elma publish`: packing, checks in {len(sent['engines'])} ways, building, upload, "
            "a worker that loads it",
            f"{result['publish_command_seconds']:.1f} s",
        ),
        (f"of it the upload of {sent['bytes_sent']:,} bytes", f"{sent['upload_seconds']:.2f} s"),
        (
            f"bytes to each edge (chunks; the manifest has {sent['manifest_bytes']:,})",
            f"{result['bytes_per_edge']['most']:,}",
        ),
        (
            "transfer and assembly on an edge, median and last",
            f"{transfers['median']:.2f} s, {transfers['last']:.2f} s",
        ),
        (
            "from the command's start until the first, the median, the last edge use it",
            ", ".join(f"{result[f'{who}_edge_active_seconds']:.1f} s" for who in _WHO),
        ),
        ("until the last has answered a question", f"{result['last_edge_answered_seconds']:.1f} s"),
        ("wire limit: bare clients that read every retained chunk at once", wire),
    )
    head = (
        f"`{result['model']}` ({sent['release_bytes']:,} bytes as a release) to "
        f"{result['edges']} edges without weights ({result['engine']} engine), all at once:"
    )
    return "\n".join([head, "", *_two_columns(rows)])


def cuts_markdown(result: Result) -> str:
    """Table of `benchmarks.release_cuts`."""
    cuts = ", ".join(f"{count} of the {kind}" for kind, count in result["cuts"].items())
    rows = (
        ("transfers, and their cuts", f"{result['transfers']}; {cuts}"),
        ("each completed, and only whole releases answered", "yes" if result["is_right"] else "no"),
        ("bytes of a transfer", f"{result['bytes_of_a_whole_transfer']:,}"),
        (
            "fetched again, all together (four chunks a cut may be: "
            f"{result['bytes_that_may_be']:,})",
            f"{result['bytes_fetched_again']['total']:,}",
        ),
        ("answers meanwhile", f"{sum(result['answers_by_release'].values()):,}"),
    )
    return "\n".join(_two_columns(rows))


def _two_columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    return ["| | |", "| --- | ---: |", *(f"| {what} | {value} |" for what, value in rows)]


_WHO = ("first", "median", "last")
# The first word of a result's name is the benchmark that wrote it.
MARKDOWN: dict[str, Callable[[Any], str]] = {
    "edge": edge.markdown_of,
    "wire": wire.markdown_of,
    "worker": worker_report.markdown_of,
    "frontier": frontier_report.markdown_of,
    "limit": limit.markdown_of,
    "memory": memory.markdown_of,
    "release_bytes": release_bytes.markdown_of,
    "release_fleet": fleet_markdown,
    "release_cuts": cuts_markdown,
}
DRAWINGS: dict[str, Callable[[Any, Path], None]] = {
    "edge-1": edge.draw,
    "frontier": frontier_report.draw,
    "frontier-slow": frontier_report.draw,
    "worker": worker_report.draw,
}
EDGE_RESULTS = ("edge-1", "edge-2", "edge-1-avx2", "edge-2-avx2")


def main() -> None:
    """Rewrite, or only check, every page."""
    check = sys.argv[1:] == ["--check"]
    results, stale = load_results(RESULTS), []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        rendered = render(text, results, figures=_figures_of(page))
        if rendered != text:
            stale.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(rendered, encoding="utf-8")
    if not check:
        for name, draw in DRAWINGS.items():
            if name in results:
                draw(results[name], FIGURES / f"bench-{name}.png")
    sys.stdout.write(f"{'stale' if check else 'rewritten'}: {', '.join(stale) or 'nothing'}\n")
    sys.exit(1 if check and stale else 0)


def load_results(folder: Path) -> dict[str, Result]:
    """Every stored result of `elma bench`, by its file's name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
        if path.stem.partition("-")[0] in MARKDOWN
    }


def render(page: str, results: Mapping[str, Result], *, figures: str) -> str:
    """The page with every block filled anew; `figures` is the way from it to the pictures."""

    def fill(match: re.Match[str]) -> str:
        opening, name, _, closing = match.groups()
        return f"{opening}{block_of(name, results, figures)}\n{closing}"

    return BLOCK.sub(fill, page)


def block_of(name: str, results: Mapping[str, Result], figures: str) -> str:
    """The text of one block, with its picture where it has one."""
    if name == "acceptance":
        return acceptance_table(results)
    result = results.get(name)
    if result is None:
        return f"(not measured yet: {name})"
    parts = [MARKDOWN[name.partition("-")[0]](result), provenance(result)]
    if name in DRAWINGS:
        parts.append(f"![{name}]({figures}/bench-{name}.png)")
    return "\n\n".join(parts)


def _figures_of(page: Path) -> str:
    """The relative path from a page to the folder of pictures."""
    return "docs/figures" if page.parent == ROOT else "../docs/figures"


def provenance(result: Result) -> str:
    """Machine and commit behind a result."""
    machine = result["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version
    )
    return f"Commit {machine['commit']}, Python {machine['python']}, {versions}."


@dataclass(frozen=True)
class Line:
    """One line of acceptance: what was asked, what was measured, whether that is enough."""

    number: int
    asked: str
    measured: str
    is_met: bool

    def markdown(self) -> str:
        """A row of the table."""
        return f"| {self.number} | {self.asked} | {self.measured} | {self._verdict} |"

    @property
    def _verdict(self) -> str:
        return "met" if self.is_met else "**missed**"


def acceptance_table(results: Mapping[str, Result]) -> str:
    """Every line that a stored result decides."""
    lines = ["| | asked | measured | |", "|---|---|---|---|"]
    lines += [line.markdown() for line in acceptance(results)]
    return "\n".join(lines)


def acceptance(results: Mapping[str, Result]) -> Iterator[Line]:
    """The lines of issue 3 that `elma bench` measures."""
    for name in EDGE_RESULTS:
        if name in results:
            yield from _edge_lines(results[name])
    if "worker" in results:
        yield from _worker_lines(results["worker"])
    for name in ("memory", "memory-device"):
        if name in results:
            yield from _memory_lines(results[name])
    if "wire" in results:
        yield from _wire_lines(results["wire"])
    if "frontier" in results:
        sentences = results["frontier"]["text_wins"]
        yield Line(
            7,
            "frontier in the README; where cloud-only with text beats us, it says so",
            f"{len(sentences)} links where the text is better in something, each said",
            True,
        )


def _edge_lines(result: Result) -> Iterator[Line]:
    machine = result["machine"]
    rows = {row["name"]: row for row in result["rows"]}
    ours = rows[edge.OURS]
    where = f"{machine['threads']} thread(s)" + (
        "" if machine["isa"] == "native" else f", {machine['isa']}"
    )
    wanted = 15.0 if machine["isa"] == "native" else 6.0
    for key, peer, at_least in (
        ("padded_fp32", edge.PADDED, wanted),
        ("onnx_int8", edge.ONNX_INT8, 1.5),
    ):
        ratio = result["ratios"][key]
        if ratio is None:
            continue
        if key == "onnx_int8" and machine["isa"] != "native":
            continue  # ONNX Runtime cannot be held to an instruction set, so this compares nothing
        drop = rows[peer]["f1"] - ours["f1"]
        yield Line(
            1,
            f"{where}: at least {at_least:g} times as fast as {peer}, at most 1.0 F1 below",
            f"{ratio:.1f} times, F1 {ours['f1']:.1f} against {rows[peer]['f1']:.1f}",
            ratio >= at_least and drop <= 1.0,
        )


def _worker_lines(result: Result) -> Iterator[Line]:
    share = result["ours_qps"] / result["ceiling_qps"]
    over_equal = result["ours_qps"] / result["equal_depth_qps"]
    over_alone = result["p95_long_passage_ms"] / result["p95_ms"]
    yield Line(4, "at least 85 % of the offline ceiling", f"{100 * share:.0f} %", share >= 0.85)
    yield Line(
        4, "at least 1.3 times equal-depth batching", f"{over_equal:.2f} times", over_equal >= 1.3
    )
    yield Line(
        4,
        "p95 beside a long passage at most twice that without",
        f"{over_alone:.2f} times",
        over_alone <= 2.0,
    )


def _memory_lines(result: Result) -> Iterator[Line]:
    for row in result["rows"]:
        torch = "" if row["torch_loaded"] else ", no torch in the process"
        yield Line(
            5,
            f"edge with the {row['engine']} engine: at most {row['aim_mb']:.0f} MB while answering",
            f"{row['rss_mb']:.0f} MB (peak with loading {row['peak_mb']:.0f} MB{torch})",
            row["rss_mb"] <= row["aim_mb"],
        )


def _wire_lines(result: Result) -> Iterator[Line]:
    trip, own = result["round_trip_p50_ms"], result["sealing_and_codec_ms"]
    codec, tokens = result["round_trip_codec"], result["tokens"]
    yield Line(
        6,
        f"round trip without computation at most 5 ms at the median ({codec}, {tokens} tokens)",
        f"{trip:.2f} ms",
        trip <= 5.0,
    )
    yield Line(6, "sealing and codec at most 1 ms of it", f"{own:.2f} ms", own <= 1.0)


if __name__ == "__main__":
    main()
