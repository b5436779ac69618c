"""Nodes on hosts of their own: a host that is cut off, and one whose server was killed.

Hosts are network namespaces of the test's own; without the right to make them, the same is tried
on lines that break (`tests/test_nodes.py`).
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

import forebay
from forebay.serve.tokens import add_token
from forebay.storage.base.errors import NodeError
from tests.hosts import Network, network
from tests.nodes import NODES, nodes
from tests.serving import Server

COUNT = "select count(*) as n from events"


def certificate(folder: Path, net: Network) -> list[str]:
    """What a server is given of one for all hosts, signed by itself."""
    key, made = folder / "key.pem", folder / "cert.pem"
    names = ",".join(f"IP:{net.address(number)}" for number in range(net.count))
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {made}"
    more = ["-subj", "/CN=nodes", "-addext", f"subjectAltName={names}"]
    subprocess.run([*command.split(), *more], check=True, capture_output=True)
    return ["--tls-cert", str(made), "--tls-key", str(key)]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_a_host_that_is_cut_off_is_named_and_the_others_answer(tmp_path: Path) -> None:
    with network(NODES) as net, ExitStack() as stack:
        several, one = nodes(tmp_path)
        for part in (*several, one):
            stack.callback(part.close)
        tls, places = certificate(tmp_path, net), []
        servers = []
        for number, node in enumerate(several):
            file = tmp_path / f"tokens-{number}.json"
            token = add_token(file, "all", "read")
            server = Server(
                node.root, "--host", net.address(number), "--tokens", str(file), *tls,
                prefix=net.inside(number),
            )  # fmt: skip
            stack.callback(server.close)
            servers.append(server)
            url = f"https://{net.address(number)}:{server.port}"
            places.append(forebay.Node(url, token, tmp_path / "cert.pem", seconds=30))

        store, oracle = forebay.open(*places), forebay.open(one.root)
        partial = forebay.open(*places, partial=True)

        def there(*numbers: int) -> int:
            named = ", ".join(f"'s{number}'" for number in numbers)
            return int(oracle.sql(f"{COUNT} where _partition in ({named})").item())

        assert store.sql(COUNT).item() == partial.sql(COUNT).item() == there(0, 1, 2)
        with pytest.raises(NodeError, match=r"expected a server that can be reached, got .*CERT"):
            forebay.open(forebay.Node(places[0].url, places[0].token))

        net.cut(1)
        with pytest.raises(NodeError, match=f"{places[1].url}: expected a server .* got timed out"):
            store.sql(COUNT)
        assert partial.sql(COUNT).item() == there(0, 2)
        assert partial.receipt().silent_nodes == (places[1].url,)

        servers[0].process.kill()
        servers[0].process.wait()
        assert partial.sql(COUNT).item() == there(2)
        assert partial.receipt().silent_nodes == (places[0].url, places[1].url)

        net.mend(1)
        assert partial.sql(COUNT).item() == there(1, 2)
