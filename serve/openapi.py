"""The OpenAPI document of a server, made from the parameters of its questions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from forebay.serve.kinds import ANALYTICS, Kind
from forebay.serve.parameters import Form
from forebay.serve.routes import (
    ASKED,
    EVENTS,
    FILE,
    FILES,
    INDEX,
    MCP,
    MEDIA_TYPES,
    ORDERED,
    PROGRAMS,
)

Json = dict[str, Any]
JSON = "application/json"
ONLY_JSON = ("receipt", "roles", "tables", "why", *ORDERED)
SECURED: list[Json] = [{"token": []}, {}]
PROBLEM: Json = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was expected, and what came."},
    },
    "required": ["type", "title", "status", "detail"],
}
PROBLEMS = {
    "400": "Not a question.",
    "401": "Without a token that is known.",
    "403": "Of another site, or beyond the token's scope.",
    "404": "No such path.",
    "405": "Another method.",
    "406": "No such format of this answer.",
    "409": "Another handoff is open.",
    "410": "A file that no longer exists: what it had is in others now.",
    "413": "More than a question may have.",
    "415": "The body is not JSON.",
    "416": "No such range of the file.",
    "421": "For another host.",
    "422": "A question that can't be answered: the detail says what was expected.",
    "429": "Too many at once: try again after Retry-After.",
    "500": "Data that can't be read.",
    "501": "What is not installed.",
    "502": "The process that made the answer has ended.",
    "504": "It took too long.",
    "507": "It took too much memory.",
}
FORMAT: Json = {
    "name": "format",
    "in": "query",
    "description": "In place of the header Accept. Of python and sql the answer is a program that"
    " asks the same; sql has one for some questions of segmentation.",
}


def document(kinds: Mapping[str, Kind]) -> Json:
    """The document of all paths."""
    paths: Json = {path: _item(name, kinds[name]) for name, path in ASKED.items()}
    for name, path in ORDERED.items():
        paths[path] = {"post": _operation(name, kinds[name], "post")}
    paths[EVENTS] = {"get": _events()}
    paths[FILES] = {"get": _files(kinds["files"])}
    paths[FILE] = {"get": _file()}
    paths[MCP] = {"post": _mcp()}
    for path, about, kind in (
        ("/livez", "Whether the server runs.", "text/plain"),
        ("/readyz", "Whether a question would be answered.", "text/plain"),
        ("/metrics", "What the server counts of itself, for Prometheus.", "text/plain"),
        ("/openapi.json", "This document.", JSON),
        ("/docs", "This document, for people.", "text/html"),
        (INDEX, "The paths that there are.", JSON),
        ("/", "The page for people, with charts.", "text/html"),
    ):
        paths[path] = {"get": _plain(about, kind)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Forebay",
            "version": version("forebay"),
            "description": "Events of a data directory, each exactly once, asked over HTTP. Below"
            " /api/2 is Amplitude's Dashboard REST API, whose own documentation describes it;"
            " docs/amplitude.md says what of it is served.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM},
            "responses": {
                status: {
                    "description": about,
                    "content": {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/Problem"}
                        }
                    },
                }
                for status, about in PROBLEMS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": SECURED,
    }


def _item(name: str, kind: Kind) -> Json:
    return {method: _operation(name, kind, method) for method in ("get", "post")}


def _operation(name: str, kind: Kind, method: str) -> Json:
    schema = kind.form.model.model_json_schema()
    schema.pop("title", None)
    summary, _, rest = kind.about.partition("\n\n")
    found: Json = {
        "operationId": f"{name}_{method}",
        "summary": " ".join(summary.split()),
        "description": rest or " ".join(summary.split()),
        "responses": {"200": _answer(name), **_problems()},
    }
    parameters = [
        {"name": one, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for one in kind.form.path
    ]
    if name not in ONLY_JSON:
        parameters.append({**FORMAT, "schema": {"enum": list(_formats(name))}})
        found["responses"]["304"] = {"description": "The asker has this answer (If-None-Match)."}
    if method == "get":
        parameters += _in_query(schema, kind.form)
    else:
        own = {n: s for n, s in schema.get("properties", {}).items() if n not in kind.form.path}
        needed = [one for one in schema.get("required", ()) if one not in kind.form.path]
        body = {**schema, "properties": own}
        body.pop("required", None)
        if needed:
            body["required"] = needed
        found["requestBody"] = {"required": bool(needed), "content": {JSON: {"schema": body}}}
    if parameters:
        found["parameters"] = parameters
    return found


def _in_query(schema: Json, form: Form) -> list[Json]:
    """Each parameter as it is in an address: lists are repeated names, and objects are JSON."""
    found = []
    for name, one in schema.get("properties", {}).items():
        if name in form.path:
            continue
        parameter: Json = {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
        }
        plain = _plain_schema(one)
        if plain is None:
            parameter["content"] = {JSON: {"schema": one}}
        else:
            parameter["schema"] = plain
        found.append(parameter)
    return found


def _plain_schema(schema: Json) -> Json | None:
    """The schema of a text, or of a list of texts; None if it must be JSON."""
    kept = {name: value for name, value in schema.items() if name != "title"}
    if "anyOf" in kept:
        some = [one for one in kept["anyOf"] if one.get("type") != "null"]
        texts = [one for one in some if _plain_schema(one) is not None]
        if not texts:
            return None
        first = _plain_schema(texts[0])
        assert first is not None
        more = {n: kept[n] for n in ("description",) if n in kept}
        return {**first, **more}
    if kept.get("type") == "array":
        items = _plain_schema(kept.get("items", {}))
        return None if items is None else {**kept, "items": items}
    if kept.get("type") == "object" or not kept.keys() & {"type", "enum", "const"}:
        return None
    return kept


def _formats(name: str) -> Mapping[str, str]:
    """The formats of its answers, with their media types."""
    if name in ONLY_JSON:
        return {"json": JSON}
    return {**MEDIA_TYPES, **PROGRAMS} if name in ANALYTICS else MEDIA_TYPES


def _answer(name: str) -> Json:
    known = _formats(name)
    schemas: Json = {"json": {}, "ndjson": {"type": "string"}, "csv": {"type": "string"}}
    if name in ANALYTICS:
        schemas["json"] = {"type": "object", "additionalProperties": {"type": "array"}}
    elif name in ONLY_JSON:
        schemas["json"] = {"type": "object"}
    else:
        schemas["json"] = {"type": "array", "items": {"type": "object"}}
    content = {
        kind.partition(";")[0]: {"schema": schemas.get(one, {"type": "string"})}
        for one, kind in known.items()
    }
    return {"description": "The answer.", "content": content}


def _problems() -> Json:
    return {status: {"$ref": f"#/components/responses/{status}"} for status in PROBLEMS}


def _plain(about: str, kind: str) -> Json:
    found = {"description": about, "content": {kind: {}}}
    return {"summary": about, "responses": {"200": found, **_problems()}}


def _events() -> Json:
    text: Json = {"type": "array", "items": {"type": "string", "minLength": 1}}
    return {
        "summary": "Events as they come, each once, as server-sent events.",
        "description": "Each is a message of which the data is the event as a JSON object. A"
        " message `missed` says how many events a client did not get that read too slowly; `gap`"
        " that it was away for too long, and does not get what came since the message `after`.",
        "parameters": [
            {
                "name": "Last-Event-ID",
                "in": "header",
                "schema": {"type": "string"},
                "description": "The id of the last message that the client has: it gets what came"
                " since, if it is back within half a minute.",
            },
            {"name": "event", "in": "query", "schema": text, "description": "By default all."},
            {"name": "where", "in": "query", "schema": text, "description": "Filters."},
            {
                "name": "last",
                "in": "query",
                "schema": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 0},
                "description": "Begin with so many of those that there are.",
            },
        ],
        "responses": {
            "200": {
                "description": "Events until the client leaves.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **_problems(),
        },
    }


def _mcp() -> Json:
    message: Json = {"type": "object", "properties": {"jsonrpc": {"const": "2.0"}}}
    return {
        "summary": "Tools of language models: the Model Context Protocol (MCP), over HTTP.",
        "description": "Each request is a POST of one message of JSON-RPC, and stands alone: there"
        " are no sessions. The tools are those of `forebay mcp`; they need the extra mcp.",
        "requestBody": {"required": True, "content": {JSON: {"schema": message}}},
        "responses": {
            "200": {"description": "The answer.", "content": {JSON: {"schema": message}}},
            "202": {"description": "A notification, which has no answer."},
            **_problems(),
        },
    }


def _files(kind: Kind) -> Json:
    nullable: Json = {"type": ["string", "null"]}
    file: Json = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "format": "uri"},
            "node": nullable,
            "partition": nullable,
            "rows": {"type": "integer"},
            "bytes": {"type": "integer"},
            "first_upload_time": nullable,
            "last_upload_time": nullable,
            "lacking": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Declared columns that the file has not.",
            },
        },
    }
    listed: Json = {
        "type": "object",
        "properties": {
            "batch_number": {"type": "integer"},
            "covered_until": nullable,
            "columns": {"type": "array", "items": {"type": "object"}},
            "files": {"type": "array", "items": file},
        },
    }
    schema = kind.form.model.model_json_schema()
    return {
        "summary": kind.about,
        "description": "Read all of them; the last one, of which partition is null, has the rows"
        " that are in no other. They stay for the job's grace period (10 minutes unless set"
        " otherwise); that of the rest for as long, or until there are many newer lists.",
        "parameters": _in_query(schema, kind.form),
        "responses": {
            "200": {"description": "The list.", "content": {JSON: {"schema": listed}}},
            "304": {"description": "The asker has this list (If-None-Match)."},
            **_problems(),
        },
    }


def _file() -> Json:
    whole: Json = {MEDIA_TYPES["parquet"]: {"schema": {"type": "string"}}}
    name: Json = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    wanted: Json = {
        "name": "Range",
        "in": "header",
        "description": "Such as bytes=0-99, or bytes=-99 for the last ones.",
        "schema": {"type": "string"},
    }
    return {
        "summary": "A Parquet file of the list.",
        "parameters": [name, wanted],
        "responses": {
            "200": {"description": "All of it.", "content": whole},
            "206": {"description": "What the header Range asks for.", "content": whole},
            "304": {"description": "The asker has it (If-None-Match)."},
            **_problems(),
        },
    }
