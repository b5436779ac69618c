"""Clients of Amplitude that others wrote, told of another server: what they read there, as JSON.

    python foreign_clients.py airbyte|wrapper ADDRESS SECRET START

It runs in an environment of its own (see tests/test_amplitude_clients.py), and so imports nothing
of ours. Only the base addresses of the clients are changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def airbyte(address: str, secret: str, start: str) -> dict[str, Any]:
    """The records of each stream of airbyte-source-amplitude, from the day `start` on."""
    import source_amplitude
    import yaml
    from airbyte_cdk.models import SyncMode
    from airbyte_cdk.sources.declarative.manifest_declarative_source import (
        ManifestDeclarativeSource,
    )
    from airbyte_cdk.sources.streams.http.requests_native_auth import BasicHttpAuthenticator
    from source_amplitude.streams import Events

    Events.url_base = f"{address}/api/"
    manifest = yaml.safe_load(
        (Path(source_amplitude.__file__).parent / "manifest.yaml").read_text()
    )
    manifest["definitions"]["requester"]["url_base"] = f"{address}/api"
    config = {
        "api_key": "0123456789abcdef", "secret_key": secret, "start_date": f"{start}T00:00:00Z",
        "data_region": "Standard Server", "active_users_group_by_country": True,
    }  # fmt: skip
    source = ManifestDeclarativeSource(source_config=manifest)
    events = Events(
        authenticator=BasicHttpAuthenticator("0123456789abcdef", secret),
        start_date=config["start_date"],
        data_region="Standard Server",
        event_time_interval={"size_unit": "hours", "size": 24 * 30},
    )
    found = {}
    for stream in (*source.streams(config), events):
        found[stream.name] = [
            dict(getattr(record, "data", record))
            for part in stream.stream_slices(sync_mode=SyncMode.full_refresh)
            for record in stream.read_records(SyncMode.full_refresh, stream_slice=part)
        ]
    return found


def wrapper(address: str, secret: str, start: str) -> dict[str, Any]:
    """What amplitude-data-wrapper answers, with the status where it gives the response."""
    from amplitude_data_wrapper import analytics_api as api

    api.API_DOMAINS["eu"] = address
    known = {"api_key": "0123456789abcdef", "secret": secret}
    day = start.replace("-", "")
    some = {"prop": "country", "op": "is", "values": ["NL"]}
    found: dict[str, Any] = {}
    for name, response in {
        "segmentation": api.get_event_segmentation(
            start=day, end=day, event={"event_type": "_active"}, metrics="totals", **known
        ),
        "segment": api.get_event_segmentation(
            start=day, end=day, event={"event_type": "_active"}, metrics="uniques",
            segment=json.dumps([some]), interval=7, limit=10, **known,
        ),
        "search": api.find_user(user="u3", **known),
        "chart": api.get_chart(chart_id="abc123", **known),
    }.items():  # fmt: skip
        found[name] = [response.status_code, response.json()]
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "events.zip")
        api.export_project_data(start=f"{day}T00", end=f"{day}T23", filename=file, **known)
        found["export"] = Path(file).read_bytes().hex()
    return found


if __name__ == "__main__":
    _, client, *arguments = sys.argv
    print("FOUND", json.dumps({"airbyte": airbyte, "wrapper": wrapper}[client](*arguments)))
