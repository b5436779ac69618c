"""The hosts of a job over several: their addresses, and what each port of theirs is for.

A host is named with a port, `a:2101`. The others connect to that of host 0; the workers of a host
have the ports that follow, `a:2102` the first of them.

The engine numbers workers, and a partition's state is on the worker whose number is a hash modulo
their count. Worker W of host H has the number W * hosts + H, so the host is the hash modulo the
number of hosts, however many workers each has: another run may have more or fewer, and each
partition finds its data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import count_text

PORT_MAX = 65_535
_ADDRESS = re.compile(r"(?P<name>[^\s:\[\]]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Address:
    """A name, or an IP address without brackets, and a port."""

    name: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises BadInput."""
        found = _ADDRESS.fullmatch(text)
        if not found or not 0 < int(found["port"]) <= PORT_MAX:
            raise BadInput(f"expected NAME:PORT, such as a:2101, got {text!r}")
        return cls(found["name"].strip("[]"), int(found["port"]))

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}"

    def above(self, ports: int) -> Address:
        return Address(self.name, self.port + ports)


@dataclass(frozen=True)
class Hosts:
    """All hosts of a job in the order that all agree on, the number of this one, and how many
    workers each has."""

    addresses: tuple[Address, ...]
    number: int
    workers: int

    @classmethod
    def parse(cls, text: str, number: int, workers: int) -> Hosts:
        """Raises BadInput if these are not hosts, or if two would have the same port."""
        try:
            addresses = tuple(Address.parse(one.strip()) for one in text.split(","))
        except BadInput as error:
            raise BadInput(f"hosts: {error}") from error
        if len(addresses) < 2:
            raise BadInput(f"hosts: expected at least two, such as a:2101,b:2101, got {text!r}")
        if not 0 <= number < len(addresses):
            raise BadInput(
                f"host: expected the number of this one, from 0 to {len(addresses) - 1},"
                f" got {number}"
            )
        taken: dict[Address, Address] = {}
        for address in addresses:
            if address.port + workers > PORT_MAX:
                raise BadInput(
                    f"hosts: expected {workers} more ports for workers above that of {address},"
                    f" the last of which is {PORT_MAX}"
                )
            for one in map(address.above, range(workers + 1)):
                other = taken.setdefault(one, address)
                if other is not address:
                    raise BadInput(
                        "hosts: expected a port for each host and each of its"
                        f" {count_text(workers, 'worker')} above it, got {one} for both {other}"
                        f" and {address}"
                    )
        return cls(addresses, number, workers)

    @property
    def processes(self) -> tuple[int, ...]:
        """The engine's numbers of this host's workers."""
        return tuple(range(self.number, len(self.addresses) * self.workers, len(self.addresses)))

    @property
    def workers_addresses(self) -> tuple[Address, ...]:
        """The addresses at which all workers meet, in the order of the engine's numbers."""
        return tuple(
            address.above(worker + 1)
            for worker in range(self.workers)
            for address in self.addresses
        )

    def named(self, number: int) -> str:
        return f"host {number} at {self.addresses[number]}"

    def __str__(self) -> str:
        return ",".join(map(str, self.addresses))
