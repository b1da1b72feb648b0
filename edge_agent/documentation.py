"""/docs: the OpenAPI document as one plain page, without scripts or anything from elsewhere.

Input: an OpenAPI document. Output: HTML. A device may have no network, so nothing is loaded from a
CDN; for an interactive page, load /openapi.json into any OpenAPI viewer.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{background:#f2f2f2;padding:.1rem .3rem}pre{padding:.6rem;overflow:auto}"
    "h2{margin-top:2.5rem}"
)


def draw_documentation(document: dict[str, Any]) -> str:
    """The whole page."""
    title = _text(document["info"]["title"])
    return "".join(
        [
            "<!doctype html><html lang='en'><meta charset='utf-8'>",
            f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
            f"<p>{_text(document['info'].get('description', ''))} The same as data: "
            "<a href='/openapi.json'>/openapi.json</a>.</p>",
            *_draw_operations(document),
            *_draw_schemas(document),
            "</html>",
        ]
    )


def _draw_operations(document: dict[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"<h2><code>{method.upper()} {_text(path)}</code></h2>"
            yield f"<p>{_text(operation.get('summary', ''))}</p>"
            for media in operation.get("requestBody", {}).get("content", {}).values():
                yield f"<p>Body:</p>{_pretty(media['schema'])}"
            yield "<ul>"
            for status, response in operation.get("responses", {}).items():
                yield f"<li><code>{_text(status)}</code> {_text(response['description'])}</li>"
            yield "</ul>"


def _draw_schemas(document: dict[str, Any]) -> Iterator[str]:
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        yield f"<h2>{_text(name)}</h2>{_pretty(schema)}"


def _pretty(value: object) -> str:
    return f"<pre>{_text(json.dumps(value, indent=2))}</pre>"


def _text(value: object) -> str:
    return html.escape(str(value))
