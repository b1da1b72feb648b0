"""Watch the reader layer by layer: what each exit would say, and where a device stops.

    python examples/exit_by_exit.py "When was the lamp lit for the first time?" lighthouse.txt

The first argument is a question, the second a text file (up to one window, about 300 words, is
shown exit by exit). No broker and no worker: this is the network alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reader.model import Reader
from reader.spans import choose_answers
from reader.walk import walk


def main(question: str, passage: str) -> None:
    """Print one line an exit, then where the exit criterion stops."""
    reader = Reader.load("elma-small")
    windows = reader.split(question, passage)[:1]

    state = reader.embed(windows)  # the state "after layer 0"
    for layer in range(1, reader.config.layers + 1):
        state = reader.run(state, layer - 1, layer)  # one layer further
        spans = reader.spans(state, layer, [0])
        answer = choose_answers(windows, spans, passage, reader.settings)[0]
        print(f"exit {layer:2}  {answer.score:4.0%}  {answer.text or '(no answer)'}")

    walked = walk(reader, windows, last_layer=reader.config.layers)
    stopped = walked.resolved[0]
    answer = choose_answers(windows, [stopped], passage, reader.settings)[0]
    print(f"\nA device stops at layer {stopped.layer}: {answer.text or '(no answer)'}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8"))
