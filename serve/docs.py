"""The page on what programs can ask: the OpenAPI document as plain HTML, without a script, and
without anything loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from forebay.serve.gate import POLICY

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font:13px/1.5 ui-monospace,monospace}"
    "h2{margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}"
    "table{border-collapse:collapse;width:100%}td{border-top:1px solid #ddd;padding:.3rem .6rem;"
    "vertical-align:top}pre{white-space:pre-wrap}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"
)
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
DOCS_POLICY = f"{POLICY}; style-src 'sha256-{_HASH}'"


def docs(document: Mapping[str, Any]) -> str:
    """All paths, each with its parameters."""
    body = "\n".join(_paths(document))
    title = f"Forebay {escape(document['info']['version'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"<p>{escape(document['info']['description'])} A question is a GET with parameters in the"
        " address, or a POST with the same as a JSON object. As a document:"
        ' <a href="/openapi.json">openapi.json</a>. For people: <a href="/">the page</a></p>\n'
        f"{body}\n</body></html>\n"
    )


def _paths(document: Mapping[str, Any]) -> Iterator[str]:
    for path, item in document["paths"].items():
        methods = ", ".join(method.upper() for method in item)
        one = next(iter(item.values()))
        yield f"<h2>{methods} <code>{escape(path)}</code></h2>"
        yield f"<p>{escape(one['summary'])}</p>"
        if one.get("description") not in (None, one["summary"]):
            yield f"<pre>{escape(one['description'])}</pre>"
        rows = [_row(parameter) for parameter in one.get("parameters", ())]
        if rows:
            yield f"<table>{''.join(rows)}</table>"


def _row(parameter: Mapping[str, Any]) -> str:
    inner = parameter.get("content", {}).get("application/json", {})
    schema = parameter.get("schema") or inner.get("schema", {})
    kind = schema.get("type") or ("JSON" if inner else "")
    if "enum" in schema:
        kind = " | ".join(map(str, schema["enum"]))
    default = f", default {schema['default']}" if schema.get("default") is not None else ""
    needed = ", needed" if parameter.get("required") else ""
    about = parameter.get("description") or schema.get("description") or ""
    name = f"<code>{escape(parameter['name'])}</code>"
    told = f"{escape(str(kind))}{escape(default)}{needed}"
    return f"<tr><td>{name}</td><td>{told}</td><td>{escape(about)}</td></tr>"
