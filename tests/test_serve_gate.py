"""`forebay serve` and those who should not get in: pages of other sites, strangers, and who has a
token that does not go so far."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from forebay.cli.main import main
from forebay.serve.config import Config
from forebay.serve.routes import format_of
from forebay.serve.server import _listening
from forebay.serve.tokens import Tokens, add_token, read_tokens, remove_token
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.formats.replay_request import read_request
from tests.serving import Server, filled

FRONT = "import sys, forebay.cli.serve, forebay.serve.server; print(*sys.modules)"
SMALL = "/v1/sql?text=select%201%20as%20n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    partition = filled(tmp_path_factory.mktemp("served") / "data")
    yield partition.root
    partition.crash()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.json"


@pytest.fixture(scope="module")
def keys(tokens: Path) -> dict[str, str]:
    return {
        "reader": add_token(tokens, "reader", "read"),
        "boss": add_token(tokens, "boss", "admin"),
    }


@pytest.fixture(scope="module")
def server(root: Path, tokens: Path, keys: dict[str, str]) -> Iterator[Server]:
    made = Server(root, "--workers", "1", "--tokens", str(tokens), "--allow-host", "panel.example")
    yield made
    made.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_only_who_has_a_token_may_ask(server: Server, tokens: Path, keys: dict[str, str]) -> None:
    for headers in ({}, bearer("forebay_x"), {"Authorization": "Basic eDp5"}, bearer("")):
        reply = server.ask(SMALL, headers=headers)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="forebay"')
    assert server.ask(SMALL, headers=bearer(keys["reader"])).json == [{"n": 1}]
    for path in ("/v1/events", "/v1/receipt", "/v1/users/u1", "/metrics"):
        assert server.ask(path).status == 401
    for path in ("/livez", "/readyz", "/", "/page/main.js", "/v1", "/docs", "/openapi.json"):
        assert server.ask(path).status == 200
    other = add_token(tokens, "other", "read")
    assert server.ask(SMALL, headers=bearer(other)).status == 200
    remove_token(tokens, "other")
    assert server.ask(SMALL, headers=bearer(other)).status == 401


def test_only_scope_admin_has_rejects_replayed(
    server: Server, root: Path, keys: dict[str, str]
) -> None:
    path, asked = "/v1/rejects/replay", {"reasons": ["bad json"]}
    reply = server.ask(path, body=asked, headers=bearer(keys["reader"]))
    assert (reply.status, "expected one of scope admin" in reply.json["detail"]) == (403, True)
    assert read_request(Disk(), Layout(root), 1) is None
    for _ in range(2):  # asked twice it is one request
        reply = server.ask(path, body=asked, headers=bearer(keys["boss"]))
        assert reply.json == {"request": 1, "rejects": 2}
    request = read_request(Disk(), Layout(root), 1)
    assert request is not None
    assert (request.wanted.reasons, request.delete) == (("bad json",), None)
    assert server.ask(path, method="GET", headers=bearer(keys["boss"])).status == 405


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "Panel.Example"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "127.0.0.1@evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "panel.example", "Origin": "https://panel.example"}, 200),
        ({"Host": "panel.example", "Origin": "https://panel.example.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_pages_of_other_sites_can_t_ask(
    server: Server, keys: dict[str, str], headers: dict[str, str], status: int
) -> None:
    reply = server.ask(SMALL, headers={**bearer(keys["reader"]), **headers})
    assert reply.status == status
    assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_what_is_no_http_hurts_nobody(server: Server) -> None:
    for sent in (b"\x16\x03\x01\x00\xff\n\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * 200_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            try:
                client.sendall(sent)
                found = client.recv(65536)
            except ConnectionError:
                continue
            assert found.startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))
    for address in (f"{SMALL}%00", "/v1/users/%FF%FE", "/v1/sql?text=%ff", "/v1/users/..%2f..%2fx"):
        assert server.ask(address).status == 401
    assert server.ask("/livez").status == 200


def test_tokens_are_random_hashed_and_their_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    file = ("--file", str(path))
    made = invoke("token", "add", "a", *file).output.strip()
    admin = invoke("token", "add", "b", "--scope", "admin", *file).output.strip()
    assert len(made) == len("forebay_") + 43
    assert made.encode() not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Tokens(path).scope_of(made) == "read"
    assert Tokens(path).scope_of(admin) == "admin"
    assert Tokens(path).scope_of(made[:-1]) is None
    assert [line.split()[:2] for line in invoke("token", "list", *file).output.splitlines()] == [
        ["name", "scope"], ["a", "read"], ["b", "admin"],
    ]  # fmt: skip
    assert "expected a new name, got 'a' again" in invoke("token", "add", "a", *file).output
    assert "got 'c'" in invoke("token", "remove", "c", *file).output
    assert invoke("token", "remove", "a", *file).exit_code == 0
    assert [one.name for one in read_tokens(path)] == ["b"]
    path.chmod(0o644)
    with pytest.raises(BadInput, match="mode 600"):
        read_tokens(path)
    path.chmod(0o600)
    path.write_text("{}")
    with pytest.raises(BadInput, match="expected a file of tokens"):
        read_tokens(path)


def test_a_file_of_tokens_that_goes_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    text = add_token(path, "a", "read")
    tokens = Tokens(path)
    path.unlink()
    assert tokens.scope_of(text) is None
    with pytest.raises(BadInput, match="forebay token add NAME makes it"):
        Tokens(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "expected --tokens FILE .*--tls-cert and --tls-key.*--allow-host"),
        (["--behind-proxy"], "expected --tokens FILE .*--allow-host"),
        (["--tls-cert", "x"], "expected --tls-cert with --tls-key, got one"),
        (["--tls-cert", "x", "--tls-key", "y"], "--tls-cert: expected a certificate"),
        (["--tokens", "none.json"], "expected a file of tokens, got none"),
        (["--host", "203.0.113.1", "--tokens", "t", "--behind-proxy", "--allow-host", "a"],
         "expected a file of tokens, got none"),
        (["--memory", "much"], "expected a size such as 512MiB"),
        (["--timeout", "0s"], "expected more than 0"),
    ],
)  # fmt: skip
def test_what_can_t_be_served_is_one_error(root: Path, options: list[str], said: str) -> None:
    result = invoke("serve", "--port", "0", "--data-dir", str(root), *options)
    assert result.exit_code in (1, 2)
    assert re.search(said, result.output.replace("\n", " ")), result.output
    assert "Traceback" not in result.output


@pytest.mark.long
@pytest.mark.executed
def test_what_a_worker_can_t_be_started_with_is_one_error(root: Path) -> None:
    result = invoke("serve", "--port", "0", "--data-dir", str(root), "--time-zone", "Mars")
    assert result.exit_code == 1
    assert "time_zone: expected a name such as Europe/Berlin, got 'Mars'" in result.output


def test_without_the_extra_it_says_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.cli.options.find_spec", lambda name: None)
    result = invoke("serve", "--data-dir", str(root))
    assert "pip install 'forebay[serve]'" in result.output


def test_an_address_that_is_in_use_is_one_error(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = invoke("serve", "--port", port, "--data-dir", str(root))
    assert (result.exit_code, "Address already in use" in result.output) == (1, True)


def test_no_answer_waits_for_an_acknowledgement() -> None:
    """An answer is its head, and then its body: Nagle's algorithm would hold the body back."""
    with (
        _listening(Config((), port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_it_speaks_tls(root: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate}"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    token = add_token(tmp_path / "tokens.json", "a", "read")
    server = Server(
        root, "--host", "localhost", "--tls-cert", str(certificate), "--tls-key", str(key),
        "--tokens", str(tmp_path / "tokens.json"),
    )  # fmt: skip
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        address = f"https://localhost:{server.port}{SMALL}"
        request = urllib.request.Request(address, headers=bearer(token))
        with urllib.request.urlopen(request, context=context, timeout=60) as reply:
            assert orjson.loads(reply.read()) == [{"n": 1}]
    finally:
        server.close()


@pytest.mark.parametrize(
    ("accepted", "kind"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("text/*", "csv"),
        ("application/json;q=0.1, application/x-ndjson", "ndjson"),
        ("text/html, */*;q=0.1", "json"),
        ("application/json;q=x, text/csv;q=0.2", "csv"),
    ],
)
def test_the_format_is_what_the_asker_likes_best(accepted: str, kind: str) -> None:
    assert format_of([], accepted) == kind


def test_the_front_loads_no_engine() -> None:
    found = subprocess.run(
        [sys.executable, "-c", FRONT], capture_output=True, text=True, check=True
    ).stdout
    assert set(found.split()).isdisjoint(
        {"bytewax", "confluent_kafka", "duckdb", "mcp", "numba", "polars"}
    )
