"""Bytes of an update on its way to one edge, by what changed, against the whole release.

    python benchmarks/release_bytes.py --base elma-small --update "fine-tuned=FOLDER" \\
        --update "smaller network=elma-fast" [--json] [--out benchmarks/results]

The first update also lends its exit heads for a row of their own. `elma.bench.release_bytes`
measures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from elma.bench.release_bytes import markdown_of, run
from elma.bench.results import write_results
from reader.weights import resolve_model_folder


def main() -> None:
    """Measure, print, and write the result where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", default="elma-small")
    parser.add_argument("--update", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    named = dict(one.rsplit("=", 1) for one in given.update)
    updates = {name: resolve_model_folder(folder) for name, folder in named.items()}
    result = run(resolve_model_folder(given.base), updates, given.threads)
    if given.out is not None:
        write_results(given.out, "release_bytes", result, markdown_of(result))
    print(json.dumps(result, indent=1) if given.json else markdown_of(result))


if __name__ == "__main__":
    main()
