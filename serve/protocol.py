"""The Model Context Protocol (MCP): a server with our tools, for both of its transports.

Both eras of the protocol are supported: the one with a handshake (up to 2025-11-25), and that of
2026-07-28, in which each request stands alone. No state is kept between requests. An error is a
result with `isError` true, so that a model can read it and ask again.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as Listed

from forebay.serve.problems import Problem
from forebay.serve.sharing import Answers
from forebay.serve.tools import INSTRUCTIONS, TOOLS, call

_READ_ONLY = ToolAnnotations(
    read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)
LISTED = [
    Listed(
        name=tool.name,
        title=tool.title,
        description=tool.about,
        input_schema=tool.schema,
        annotations=_READ_ONLY,
    )
    for tool in TOOLS
]
_SCHEMAS = {tool.name: tool.schema for tool in TOOLS}
log = logging.getLogger("forebay.serve")


def server_of(answers: Answers) -> Server[Any]:
    """A protocol server whose tools ask for these answers."""

    async def listed(_: object, __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=LISTED)

    async def called(_: object, asked: CallToolRequestParams) -> CallToolResult:
        try:
            texts = await call(answers, asked.name, asked.arguments or {})
        except Problem as problem:
            return CallToolResult(content=[TextContent(text=problem.detail)], is_error=True)
        except Exception:
            log.exception("a bug")
            told = "expected an answer, got an error: see the log"
            return CallToolResult(content=[TextContent(text=told)], is_error=True)
        return CallToolResult(content=[TextContent(text=one) for one in texts])

    return Server(
        "forebay",
        title="Forebay",
        version=version("forebay"),
        instructions=INSTRUCTIONS,
        get_tool_input_schema=_SCHEMAS.get,
        on_list_tools=listed,
        on_call_tool=called,
    )


def manager_of(answers: Answers, body_bytes: int) -> StreamableHTTPSessionManager:
    """The same over HTTP, each request on its own. Host, Origin and tokens are the gate's."""
    return StreamableHTTPSessionManager(
        server_of(answers),
        json_response=True,
        stateless=True,
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=body_bytes,
    )
