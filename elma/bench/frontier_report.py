"""How a result of `elma bench frontier` reads: its table, its sentences, its picture.

In: a result, or its rows. Out: Markdown, sentences that say where others are better, a PNG.
Neighbour: `frontier` measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elma.bench.frontier_plant import ALWAYS, AT_LAYER, FULL_DEPTH, TEXT
from elma.bench.results import COLOURS, Table, new_figure, save_figure
from elma.bench.slow_device import NAME as SLOW_NAME
from reader.codecs import TOKENS

NAMES = {
    FULL_DEPTH: "edge only, full depth",
    AT_LAYER: "edge only, last device layer",
    TEXT: "cloud only, with the text",
    ALWAYS: "every state to the cloud",
    "random": "random offload, same rate",
    "oracle": "oracle (a bound)",
}


def markdown_of(result: Mapping[str, Any]) -> str:
    """The setting, the table, how times over a link came about, and where others are better."""
    checks = [
        f"{check['link']}: {check['questions']} questions, median difference "
        f"{check['median_difference_percent']} %"
        for check in result["checks"]
    ]
    return "\n".join(
        [
            _setting(result),
            "",
            _table(result["rows"]).markdown(),
            "",
            f"Links: {result['shaping']}. Energy: {result['energy']}. Times over a link are those "
            f"on loopback and what the link adds; real questions through it: {'; '.join(checks)}.",
            "",
            "`codec = auto` settles on "
            + ", ".join(f"{codec} ({link})" for link, codec in result["auto"].items())
            + ".",
            "",
            "Where the text alone is better than what we do:",
            "",
            *(f"- {sentence}" for sentence in result["text_wins"] or ["nowhere"]),
            "",
            "Where the device alone, all its layers, is better:",
            "",
            *(f"- {sentence}" for sentence in result["edge_wins"] or ["nowhere"]),
        ]
    )


def draw(result: Mapping[str, Any], png_path: Path) -> None:
    """F1 against the median time, a panel a link."""
    rows = result["rows"]
    chosen_links = list(dict.fromkeys(row["link"] for row in rows))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    figure = new_figure(
        f"{result['model']}: what a question costs and is worth, by link",
        width=3.2 * len(chosen_links),
        height=4.2,
    )
    panels = figure.subplots(1, len(chosen_links), sharey=True, squeeze=False)[0]
    for axes, link in zip(panels, chosen_links, strict=True):
        for row in (row for row in rows if row["link"] == link):
            place = ways.index(row["way"])
            style = {"color": COLOURS[place % len(COLOURS)]}
            shape = "*" if row["way"].startswith("ours/") else "x" if row["is_bound"] else "o"
            axes.plot([row["p50_ms"], row["p95_ms"]], [row["f1"]] * 2, alpha=0.4, **style)
            label = row["name"].replace("*", "") if link == chosen_links[0] else None
            axes.plot(row["p50_ms"], row["f1"], shape, markersize=9, label=label, **style)
        axes.set(xscale="log", xlabel="ms, p50 to p95", title=link)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="F1 (%)")
    figure.legend(loc="outside lower center", fontsize="x-small", ncols=4)
    save_figure(figure, png_path)


def find_better(rows: Sequence[Mapping[str, Any]], way: str) -> list[str]:
    """A sentence for every link under which a way is better than ours in something: F1, p50, p95
    or bytes, against the codec of ours with the lowest p95."""
    shown = {
        "f1": "F1 {:.1f} against {:.1f}",
        "p50_ms": "p50 {:.0f} against {:.0f} ms",
        "p95_ms": "p95 {:.0f} against {:.0f} ms",
        "bytes": "{:,} against {:,} bytes a question",
    }
    sentences = []
    for link in dict.fromkeys(row["link"] for row in rows):
        here = [row for row in rows if row["link"] == link]
        other = next(row for row in here if row["way"] == way)
        ours = min(
            (row for row in here if row["way"].startswith("ours/")), key=lambda row: row["p95_ms"]
        )
        better = [
            words.format(other[key], ours[key])
            for key, words in shown.items()
            if (other[key] > ours[key] if key == "f1" else other[key] < ours[key])
        ]
        if better:
            best = name_of(ours["way"]).replace("*", "")
            sentences.append(
                f"{link}: {name_of(way)}, is better than {best}, in {'; '.join(better)}."
            )
    return sentences


def name_of(way: str) -> str:
    """As the table shows it."""
    if way == f"ours/{TOKENS}":
        return "**ours, token ids** (`allow-tokens`)"
    if way.startswith("ours/"):
        return f"**ours, {way.partition('/')[2]} states**"
    return NAMES[way]


def _setting(result: Mapping[str, Any]) -> str:
    """The sentences before the table: what was measured on what."""
    share = result["device_share"]
    slow = (
        ""
        if share == 1.0
        else f" The device has {100 * share:.0f} % of the processor's time ({SLOW_NAME})."
    )
    return (
        f"{result['model']}, the device runs {result['edge_layers']} layers at most on "
        f"{result['machine']['threads']} thread(s), the worker has {result['cloud_threads']} "
        f"on the same machine ({result['machine']['cpu']}). F1 on {result['f1_questions']} "
        f"questions of {result['data']}; under each link p50 / p95 in ms of "
        f"{result['questions']} of them.{slow}"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row a way: first what does not depend on the link, then the times under each."""
    links = list(dict.fromkeys(row["link"] for row in rows))
    times = {(row["way"], row["link"]): row for row in rows}
    cells = [
        (
            row["name"],
            row["f1"],
            row["has_answer_f1"],
            row["no_answer_f1"],
            round(100 * row["offload_rate"], 1),
            row["bytes"],
            *(
                f"{times[row['way'], link]['p50_ms']:.0f} / {times[row['way'], link]['p95_ms']:.0f}"
                for link in links
            ),
        )
        for row in rows
        if row["link"] == links[0]
    ]
    return Table(("", "F1", "HasAns", "NoAns", "sent %", "bytes", *links), cells)
