"""Secrets in the settings: wherever one stands, no command shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from forebay.cli.main import main
from forebay.flows.secrets import HIDDEN, masked, shown_catalog, shown_property
from tests.job import Job

ROOT = Path(__file__).parent.parent
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
secrets = st.text(f"{LETTERS}-_.~!$&'()+,;=:%/@#?[]{{}}|^", min_size=12, max_size=40)
names = st.text("abcdefghijklmnopqrstuvwxyz.-_", min_size=1, max_size=20)
passwords = st.text(f"{LETTERS}-_.~!$&+=%", min_size=12, max_size=40)


pytestmark = pytest.mark.usefixtures("alone")


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return orjson.dumps(value).decode()


def printed(text: str) -> str:
    """All that the commands which read the settings print."""
    Path("forebay.toml").write_text(text)
    told = ""
    for command in (("show",), ("show", "--json"), ("check",)):
        result = CliRunner().invoke(main, ["config", *command])
        assert result.exception is None or isinstance(result.exception, SystemExit), text
        told += result.output
    assert told
    return told


CATALOG = (
    "uri", "type", "token", "credential", "header.Authorization", "adls.account-key",
    "adls.connection-string", "adls.sas-token", "gcs.oauth2.token", "s3.access-key-id",
    "s3.secret-access-key", "s3.session-token", "oauth2-server-uri", "scope", "password",
    "glue.access-key-id", "hive.kerberos-service-name", "py-catalog-impl", "warehouse",
)  # fmt: skip
"""Names of properties of pyiceberg's catalogs, of which most may hold a secret."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(name=st.one_of(names, st.sampled_from(CATALOG)), secret=secrets)
def test_a_secret_in_the_catalog_is_shown_only_below_a_harmless_name(
    name: str, secret: str
) -> None:
    assume(secret not in name)
    told = printed(f"[batch]\ncatalog = {toml({name: secret})}\n")
    if shown_catalog(name, "x") == HIDDEN:
        assert secret not in told


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    name=st.one_of(names, st.sampled_from(("sasl.password", "sasl.pasword", "ssl.key.pem"))),
    secret=secrets,
)
def test_a_secret_among_the_properties_of_librdkafka_is_not_shown(name: str, secret: str) -> None:
    assume(secret not in name)
    told = printed(f'source = "kafka"\n[kafka]\nlibrdkafka = {toml({name: secret})}\n')
    if shown_property(name, "x") == HIDDEN:
        assert secret not in told


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(password=passwords, scheme=st.sampled_from(["postgresql", "https", "s3", "a+b.c"]))
def test_user_and_password_of_a_url_are_not_shown_wherever_it_stands(
    password: str, scheme: str
) -> None:
    url = f"{scheme}://me:{password}@host:1/path?token={password}"
    catalog = dict.fromkeys(("uri", "warehouse", "s3.endpoint", "type", "other"), url)
    properties = {"client.id": url, "sasl.oauthbearer.token.endpoint.url": url, "debug": url}
    told = printed(
        f"data_dir = {toml(url)}\n[files]\npath = {toml(url)}\n"
        f"[batch]\ncatalog = {toml(catalog)}\n[kafka]\nlibrdkafka = {toml(properties)}\n"
    )
    assert password not in told
    assert "host:1/path" in told
    for bootstrap in (url, f"me:{password}@host:9092"):
        told = printed(f'source = "kafka"\n[kafka]\nbootstrap = {toml(bootstrap)}\n')
        assert password not in told


NESTED: tuple[Any, ...] = ("{}", ["{}"], {"a": "{}"}, [["{}"]], [{"b": "{}"}])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    secret=st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=12, max_size=40),
    shape=st.sampled_from(NESTED),
    place=st.sampled_from(
        ("kafka", "batch", "kafka.librdkafka", "batch.catalog", "kafka.password", "password",
         "kafka.sasl", "token", "unheard_of", "kafka.unheard_of", "batch.unheard_of")
    ),
)  # fmt: skip
def test_a_secret_in_a_wrong_place_is_in_no_fault(secret: str, shape: Any, place: str) -> None:
    value = orjson.loads(orjson.dumps(shape).replace(b"{}", secret.encode()))
    told = printed(f"{place} = {toml(value)}\n")
    assert secret not in told


@pytest.mark.parametrize(
    "text",
    [
        '[kafka.librdkafka]\n"sasl.password" = "SECRET', '[batch.catalog]\nuri = SECRET\n',
        '[kafka.librdkafka]\n"sasl.password" = "SECRET"\n"sasl.password" = "SECRET"\n',
        '[batch.catalog]\ntoken = "\\SECRET"\n', 'x = ["SECRET",\n',
    ],
)  # fmt: skip
def test_a_secret_in_a_file_that_is_no_toml_is_not_shown(text: str) -> None:
    assert "hunter2hunter2" not in printed(text.replace("SECRET", "hunter2hunter2"))


def test_a_secret_is_not_in_what_a_job_prints_when_it_starts(
    tmp_path: Path, make_job: Callable[..., Job]
) -> None:
    """librdkafka and the engine quote what they are given."""
    secret = "hunter2hunter2"
    (tmp_path / "forebay.toml").write_text(
        'source = "kafka"\n[kafka]\nbootstrap = "127.0.0.1:1"\n[kafka.librdkafka]\n'
        f'"sasl.pasword" = "{secret}"\n"security.protocol" = "{secret}"\n'
        f'[batch.catalog]\nuri = "postgresql://me:{secret}@h/db"\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (("config", "check"), ("config", "check", "--connect")):
        done = subprocess.run(
            [sys.executable, "-m", "forebay", *command], cwd=tmp_path, capture_output=True,
            text=True, timeout=60, env=environment,
        )  # fmt: skip
        assert done.returncode == 1
        assert "sasl.pasword" in done.stderr
        assert secret not in done.stdout + done.stderr
    job = make_job(CONFIG=str(tmp_path / "forebay.toml"))
    process = job.run()
    job.until(process, lambda _: "rror" in job.told() or process.poll() is not None)
    job.kill(process)
    assert secret not in job.log.read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://u:p@h:5/db", "postgresql+psycopg2://***@h:5/db"),
        ("s3://bucket/a@b", "s3://***@b"),
        ("https://h/x?sig=abc&y=1 then", "https://h/x?*** then"),
        ("me:pw@h:9092,other:9092", "***@h:9092,other:9092"),
        ("expected brokers, got 'u:p@h'", "expected brokers, got '***@h'"),
        ("partition s0: offset 5 at 12:00", "partition s0: offset 5 at 12:00"),
        ("me@example.com wrote", "me@example.com wrote"),
    ],
)
def test_what_is_masked_is_what_stands_before_the_host_and_after_the_path(
    text: str, shown: str
) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "name",
    ["sasl.username", "security.protocol", "sasl.mechanism", "ssl.ca.location", "fetch.min.bytes",
     "client.id", "enable.ssl.certificate.verification", "queued.min.messages", "debug"],
)  # fmt: skip
def test_harmless_properties_are_shown(name: str) -> None:
    assert shown_property(name, "x") == "x"
    assert shown_catalog("s3.region", "eu-1") == "eu-1"
    assert shown_property(name, "-----BEGIN PRIVATE KEY-----") == HIDDEN
