"""The page at `/docs`, made from the OpenAPI document; it loads nothing from another host."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre, textarea { font: 13px/1.4 ui-monospace, monospace; background: #8881; padding: .6rem;
  overflow-x: auto; border: 0; border-radius: 4px; }
textarea { width: 100%; box-sizing: border-box; }
code { background: #8881; padding: 0 .2rem; }
td, th { text-align: left; vertical-align: top; padding: .1rem 1rem .1rem 0; }
"""
_SCRIPT = """
document.getElementById("send").onclick = async () => {
  const headers = {"Content-Type": "application/json"};
  const key = document.getElementById("key").value;
  if (key) headers["Authorization"] = "Bearer " + key;
  const shown = document.getElementById("answer");
  try {
    const body = document.getElementById("body").value;
    const answer = await fetch("predict", {method: "POST", headers, body});
    const text = await answer.text();
    let pretty = text;
    try { pretty = JSON.stringify(JSON.parse(text), null, 2); } catch {}
    shown.textContent = answer.status + "\\n" + pretty;
  } catch (error) { shown.textContent = String(error); }
};
"""


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: its own style and script, and requests to this service."""


def page(document: Mapping[str, Any]) -> str:
    """Returns the page, HTML.

    Args:
      document: the content of `/openapi.json`.
    """
    info = document["info"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(info['title'])} {_text(info['version'])}</h1>",
        f"<p>{_text(info.get('description', ''))}</p>",
        '<p>The whole description is at <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2><code>{_text(method.upper())} {_text(path)}</code></h2>")
            parts.append(f"<p>{_text(about.get('summary', ''))}.</p>")
            parts.append("<table><tr><th>status</th><th></th></tr>")
            parts += [
                f"<tr><td>{_text(status)}</td><td>{_text(one['description'])}</td></tr>"
                for status, one in sorted(about["responses"].items())
            ]
            parts.append("</table>")
    schemas = document.get("components", {}).get("schemas", {})
    examples = schemas.get("PredictRequest", {}).get("examples", [{}])
    parts += [
        "<h2>Try it</h2>",
        f'<textarea id="body" rows="6">{_text(_pretty(examples[-1]))}</textarea>',
        '<p><label>Key, where the service wants one: <input id="key" type="password" '
        'autocomplete="off"></label> <button id="send">POST /predict</button></p>',
        '<pre id="answer"></pre>',
        "<h2>Schemas</h2>",
    ]
    for name, schema in schemas.items():
        parts.append(f"<h3>{_text(name)}</h3><pre>{_text(_pretty(schema))}</pre>")
    parts.append(f"<script>{_SCRIPT}</script></body></html>")
    return "\n".join(parts)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _text(value: object) -> str:
    return html.escape(str(value))
