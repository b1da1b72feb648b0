"""Makes what is committed from code: the page of metrics, the golden list, dashboards, pictures.

    python -m deploy.watch metrics        docs/metrics.md, tests/system/metrics.txt
    python -m deploy.watch dashboards     deploy/grafana/dashboards/*.json
    python -m deploy.watch pictures URL   docs/figures/watch-*.png from what a Prometheus has seen

Run it from the root of a checkout. A test fails where the first two are out of date.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.watch.panels import DASHBOARDS

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Write what the first argument names."""
    parser = argparse.ArgumentParser(prog="python -m deploy.watch")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("metrics")
    verbs.add_parser("dashboards")
    pictures = verbs.add_parser("pictures")
    pictures.add_argument("url", help="address of a Prometheus with deploy/prometheus")
    pictures.add_argument("--seconds", type=float, default=600.0, help="how far back")
    arguments = parser.parse_args()
    if arguments.verb == "pictures":
        from deploy.watch.pictures import draw  # matplotlib: only here

        for dashboard in DASHBOARDS:
            path = ROOT / "docs" / "figures" / f"watch-{dashboard.name}.png"
            draw(dashboard, arguments.url, arguments.seconds, path)
    else:
        for path, content in made(arguments.verb).items():
            path.write_text(content, encoding="utf-8")


def made(verb: str) -> dict[Path, str]:
    """Each file and what should stand in it."""
    if verb == "metrics":
        from deploy.watch.catalogue import golden, page  # the services with all that they import

        return {
            ROOT / "docs" / "metrics.md": page(),
            ROOT / "tests" / "system" / "metrics.txt": golden(),
        }
    from deploy.watch.dashboards import as_json

    folder = ROOT / "deploy" / "grafana" / "dashboards"
    return {folder / f"{one.name}.json": as_json(one) for one in DASHBOARDS}


if __name__ == "__main__":
    main()
