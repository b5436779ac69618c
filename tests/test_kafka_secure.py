"""A broker with TLS: the settings that docs/kafka.md gives, tried against a real one.

One JVM listens at three addresses: as the tests use it, with TLS and passwords (PLAIN and SCRAM),
and with TLS and certificates of clients.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.broker import BrokerProcess, _free_port, missing, produce
from tests.job import Job, taken

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for certificates"),
]

TOPIC, EVENTS = "secure", 200
PASSWORD, SCRAM_PASSWORD = "sesame-plain", "sesame-scram"


@dataclass(frozen=True)
class Secured:
    """Where the broker listens, and the folder of certificates."""

    passwords: str
    certificates: str
    folder: Path

    def properties(self, way: str) -> tuple[str, dict[str, str]]:
        """The address, and librdkafka's properties, of a way in."""
        ca = {"ssl.ca.location": str(self.folder / "ca.pem")}
        if way == "certificate":
            own = {
                "security.protocol": "SSL",
                "ssl.certificate.location": str(self.folder / "client.pem"),
                "ssl.key.location": str(self.folder / "client.key"),
            }
            return self.certificates, {**ca, **own}
        password = PASSWORD if way == "PLAIN" else SCRAM_PASSWORD
        own = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": way,
            "sasl.username": "me",
            "sasl.password": password,
        }
        return self.passwords, {**ca, **own}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if lack := missing():
        pytest.skip(lack)
    folder = tmp_path_factory.mktemp("secured")
    _make_certificates(folder)
    ports: list[int] = []
    for _ in range(4):
        ports.append(_free_port(ports))
    plain, passwords, certificates, controller = (f"127.0.0.1:{port}" for port in ports)
    listeners = f"PLAINTEXT://{plain},SECURE://{passwords},MUTUAL://{certificates}"
    login = "org.apache.kafka.common.security"
    settings = {
        "listeners": f"{listeners},CONTROLLER://{controller}",
        "advertised.listeners": listeners,
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.quorum.voters": f"1@{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        "SECURE:SASL_SSL,MUTUAL:SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker-store.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.secure.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.secure.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required"
        f' user_me="{PASSWORD}";',
        "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule"
        " required;",
    }
    broker = BrokerProcess(folder / "broker", port=ports[0], settings=settings, brief=True)
    with broker:
        broker.create_topic(TOPIC, 1)
        _give_password(broker.address)
        produce(broker, TOPIC, 0, [b'{"id":"%d"}' % number for number in range(EVENTS)])
        yield Secured(passwords, certificates, folder)


def _make_certificates(folder: Path) -> None:
    """An authority, and certificates by it for the broker and for a client."""

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca")
    for name in ("broker", "client"):
        openssl(f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        openssl(
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
            f" -extfile names -out {name}.pem"
        )
    store = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "broker-store.pem").write_text(store)


def _give_password(address: str) -> None:
    """SCRAM's is kept by the broker."""
    change = UserScramCredentialUpsertion(
        "me", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), SCRAM_PASSWORD.encode()
    )
    client = AdminClient({"bootstrap.servers": address})
    for answer in client.alter_user_scram_credentials([change]).values():
        answer.result(30)


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Callable[[str, Mapping[str, str]], Job]:
    def make(address: str, properties: Mapping[str, str]) -> Job:
        return make_job(
            SOURCE="kafka",
            SCHEMA="none",
            COLUMNS='[{"name": "id", "path": "id"}]',
            DEDUP_KEY='["id"]',
            UPLOAD_TIME="broker",
            KAFKA__BOOTSTRAP=address,
            KAFKA__TOPIC=TOPIC,
            KAFKA__LIBRDKAFKA=json.dumps(properties),
        )

    return make


@pytest.mark.parametrize("way", ["PLAIN", "SCRAM-SHA-512", "certificate"])
def test_a_topic_behind_tls_is_checked_and_read(
    secured: Secured, way: str, job: Callable[[str, Mapping[str, str]], Job]
) -> None:
    mine = job(*secured.properties(way))
    assert mine.ends(mine.start("-m", "forebay", "config", "check", "--connect")) == 0, mine.told()
    process = mine.run()
    mine.until(process, lambda found: taken(found) == EVENTS)
    assert mine.stop(process) == 0, mine.told()
    for secret in (PASSWORD, SCRAM_PASSWORD):
        assert secret not in mine.told()


@pytest.mark.parametrize(
    ("way", "change", "said"),
    [
        ("PLAIN", {"sasl.password": "wrong"}, "Authentication failed"),
        ("PLAIN", {"ssl.ca.location": "client.pem"}, "certificate"),
        ("certificate", {"ssl.certificate.location": "", "ssl.key.location": ""}, "ssl"),
    ],
)
def test_a_check_says_what_the_broker_refused(
    secured: Secured,
    way: str,
    change: dict[str, str],
    said: str,
    job: Callable[[str, Mapping[str, str]], Job],
) -> None:
    address, properties = secured.properties(way)
    changed = {
        name: str(secured.folder / value) if value.endswith(".pem") else value
        for name, value in {**properties, **change}.items()
        if value
    }
    mine = job(address, changed)
    assert mine.ends(mine.start("-m", "forebay", "config", "check", "--connect")) == 1
    assert said in mine.told(), mine.told()
