"""The Parquet files that have the events, over HTTP, for engines that read Parquet by themselves.

`/v1/files` lists them, and the rows that are in no file of the job as one more file; each has a
path of its own, and may be read in ranges. What always holds:

- The files of a list have each event once, and are of one view. They are served while they exist,
  which is for the job's grace period, whatever is listed meanwhile.
- Only files of a view can be named, by a hash; no part of a path comes from a client.
- Rows that are in no file are written to an unnamed one, so nothing is left when this process ends.
  The newest of these are kept, up to a number, an age and a size.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import orjson
from starlette.datastructures import Headers, QueryParams
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from forebay.serve.asking import Client, Gone
from forebay.serve.config import Config
from forebay.serve.gate import answer_problem
from forebay.serve.metrics import Metrics
from forebay.serve.problems import Problem
from forebay.serve.question import BUNDLE, Question
from forebay.serve.routes import FILES, MEDIA_TYPES
from forebay.serve.sharing import Answers, Cut, Reply

LISTS_MAX = 32
LIST_S = 600.0
LISTS_BYTES_MAX = 4 << 30
"""Size limit of the lists kept, including the rows that are in no file."""
KNOWN_MAX = 100_000
WRITTEN_BYTES = 1 << 20
NAME = re.compile(r"(rest-)?([0-9a-f]+)\.parquet\Z")
AGAIN = f"list {FILES} again, for what they have is in others now"


@dataclass(frozen=True)
class _List:
    """An answer of `/v1/files`, and the rows that are in no file, if they were asked for."""

    etag: str
    told: dict[str, Any]
    rest: IO[bytes] | None
    rows: int
    bytes: int
    began: float

    @property
    def name(self) -> str:
        return "".join(re.findall(r"[0-9a-f]+", self.etag))

    def close(self) -> None:
        if self.rest is not None:
            self.rest.close()


class Files:
    """Two ASGI applications: `lists` and `file`."""

    def __init__(self, answers: Answers, config: Config, metrics: Metrics) -> None:
        self._answers = answers
        self._metrics = metrics
        self._scheme = "http" if config.tls_cert is None and not config.behind_proxy else "https"
        self._lists: dict[str, _List] = {}
        self._known: dict[str, str] = {}

    # -- the list -------------------------------------------------------------------------------

    async def lists(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answered("files", self._list, scope, receive, send)

    async def _list(self, scope: Scope, client: Client, send: Send) -> None:
        given: dict[str, list[str]] = {}
        try:
            for name, value in QueryParams(scope["query_string"]).multi_items():
                name.encode(), value.encode()
                given.setdefault(name, []).append(value)
        except UnicodeError as error:
            raise Problem(400, f"expected UTF-8 in the address, got {error}") from error
        found = await client.unless_gone(self._found(given))
        headers = Headers(scope=scope)
        base = f"{self._scheme}://{headers['host']}{FILES}"
        response = Response(_told(found, base), media_type="application/json")
        if _has(headers, found.etag):
            response = Response(status_code=304)
        response.headers["etag"] = found.etag
        await response(scope, _nothing, send)

    async def _found(self, given: Mapping[str, list[str]]) -> _List:
        """The current list; an earlier one is reused while nothing has changed."""
        self._forget()
        question = Question("files", BUNDLE, dict(given), known=tuple(sorted(self._lists)))
        reply = await self._answers.ask(question)
        held = self._lists.get(reply.etag or "")
        if held is not None:
            if reply.stream is not None:
                await reply.stream.aclose()
            return held
        if reply.same or reply.etag is None:  # it was forgotten meanwhile
            reply = await self._answers.ask(Question("files", BUNDLE, dict(given)))
        made = await _kept(reply)
        if (held := self._lists.setdefault(made.etag, made)) is not made:
            made.close()
            return held
        asyncio.get_running_loop().call_later(LIST_S, self._forget)
        for file in made.told["files"]:
            self._known[file["id"]] = file["path"]
        while len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]
        return made

    def _forget(self) -> None:
        """Drop lists that are too old, or too many."""
        before = time.monotonic() - LIST_S
        held = sorted(self._lists.values(), key=lambda one: one.began)
        size = sum(one.bytes for one in held)
        for number, one in enumerate(held):
            many = len(held) - number >= LISTS_MAX
            if one.began <= before or many or size > LISTS_BYTES_MAX:
                size -= one.bytes
                del self._lists[one.etag]
                one.close()

    # -- a file ---------------------------------------------------------------------------------

    async def file(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answered("file", self._file, scope, receive, send)

    async def _file(self, scope: Scope, client: Client, send: Send) -> None:
        name = str(scope["path_params"]["name"])
        number = await client.unless_gone(self._opened(name))
        try:
            stat = os.fstat(number)
            etag = f'"{name.partition(".")[0]}-{stat.st_ino}-{stat.st_size}"'
            if _has(Headers(scope=scope), etag):
                await Response(status_code=304, headers={"etag": etag})(scope, _nothing, send)
                return
            response = FileResponse(
                f"/proc/self/fd/{number}",
                headers={"etag": etag},
                media_type=MEDIA_TYPES["parquet"],
                stat_result=stat,
            )
            await client.unless_gone(response(scope, _nothing, self._counted(scope, send)))
        finally:
            os.close(number)

    def _counted(self, scope: Scope, send: Send) -> Send:
        """Count what is sent; a range that can't be served is a problem like any other."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                came = Headers(scope=scope).get("range", "")
                size = Headers(raw=message["headers"]).get("content-range")
                raise Problem(
                    message["status"],
                    f"Range: expected bytes of the file, such as bytes=0-99; got {came!r}",
                    {} if size is None else {"Content-Range": size},
                )
            self._metrics.sent.inc(len(message.get("body", b"")))
            await send(message)

        return counted

    async def _opened(self, name: str) -> int:
        """A descriptor of the file with this name, which the caller closes. Raises Problem."""
        found = NAME.match(name)
        if found is None:
            raise Problem(404, f"file: expected a name that {FILES} lists, got {name!r}")
        if found[1]:
            rest = next((one.rest for one in self._lists.values() if one.name == found[2]), None)
            if rest is None:
                raise Problem(410, f"file: expected one that is still kept, got {name!r}: {AGAIN}")
            return os.dup(rest.fileno())
        if found[2] not in self._known:
            for table in ("events", "events_late"):
                await self._found({"table": [table], "rest": ["false"]})
        path = self._known.get(found[2])
        if path is None:
            raise Problem(404, f"file: expected one that has events now, got {name!r}: {AGAIN}")
        try:
            return await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            self._known.pop(found[2], None)
            raise Problem(
                410, f"file: expected one that still exists, got {name!r}: {AGAIN}"
            ) from error

    # -- both -----------------------------------------------------------------------------------

    async def _answered(
        self,
        route: str,
        answer: Callable[[Scope, Client, Send], Awaitable[None]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        began, status = time.monotonic(), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        client = Client(receive)
        try:
            await answer(scope, client, sent)
        except Problem as problem:
            await answer_problem(problem, sent, scope["path"])
        except Gone:
            status = 499
        finally:
            client.close()
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - began)

    def close(self) -> None:
        for one in self._lists.values():
            one.close()
        self._lists.clear()


async def _kept(reply: Reply) -> _List:
    """A worker's answer: a line of JSON, then (if wanted) Parquet of the other rows, and their
    number."""
    began = time.monotonic()
    file = TemporaryFile(prefix="forebay-files-")  # noqa: SIM115  # closed when it is forgotten
    try:
        line, held = b"", bytearray()
        async for part in _parts(reply):
            held += part
            if not line and (end := held.find(b"\n") + 1):
                line = bytes(held[:end])
                del held[:end]
            if line and len(held) >= WRITTEN_BYTES:
                await asyncio.to_thread(file.write, bytes(held))
                held.clear()
        await asyncio.to_thread(file.write, bytes(held))
        await asyncio.to_thread(file.flush)
        size, rows = os.fstat(file.fileno()).st_size, 0
        if size:
            size -= 8
            rows = int.from_bytes(os.pread(file.fileno(), 8, size), "big")
            os.ftruncate(file.fileno(), size)
    except Cut as cut:
        file.close()
        raise Problem(502, str(cut)) from cut
    except OSError as error:
        file.close()
        raise Problem(507, f"expected room for rows that are in no file, got {error}") from error
    except BaseException:
        file.close()
        raise
    if not size:
        file.close()
    assert reply.etag is not None
    return _List(reply.etag, orjson.loads(line), file if size else None, rows, size, began)


async def _parts(reply: Reply) -> AsyncIterator[bytes]:
    if reply.stream is None:
        yield reply.whole or b""
        return
    async with aclosing(reply.stream) as stream:
        async for part in stream:
            yield part


def _told(found: _List, base: str) -> bytes:
    """The list, for a client that reaches the files under `base`."""
    files = [
        {"url": f"{base}/{file['id']}.parquet"}
        | {name: value for name, value in file.items() if name not in ("id", "path")}
        for file in found.told["files"]
    ]
    if found.rest is not None:
        files.append(
            {
                "url": f"{base}/rest-{found.name}.parquet",
                **dict.fromkeys(("node", "partition")),
                "rows": found.rows,
                "bytes": found.bytes,
                **dict.fromkeys(("first_upload_time", "last_upload_time")),
                "lacking": [],
            }
        )
    return orjson.dumps({**found.told, "files": files}, option=orjson.OPT_APPEND_NEWLINE)


def _has(headers: Headers, etag: str) -> bool:
    """Whether the client has the version with this tag."""
    given = ",".join(headers.getlist("if-none-match")).split(",")
    return etag in {one.strip() for one in given}


async def _nothing() -> Message:
    """No more of a request."""
    found: Message = await asyncio.get_running_loop().create_future()
    return found
