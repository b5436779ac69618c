"""Samples of what vendors send, in each form that their documents and SDKs have.

tests/vendors/VENDOR.FORM.ndjson has messages, a line each, of our own writing. Beside it,
VENDOR.FORM.expected has what must become of each, a line each as JSON: {"event": its columns that
are not null}, {"duplicate": the line of its event}, or {"reject": reason, "detail": how it begins}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from forebay.flows.settings import Settings
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import Schema
from tests.partition import NAME

FOLDER = Path(__file__).parent / "vendors"
BROKER = {"upload_time": "broker"}
FORMS: dict[str, dict[str, str]] = {
    "amplitude.export": {},
    "amplitude.sdk": BROKER,
    "segment.export": {},
    "segment.sdk": BROKER,
    "rudderstack.export": {},
    "rudderstack.sdk": BROKER,
    "posthog.export": {},
    "posthog.sdk": BROKER,
    "mixpanel.export": {},
    "mixpanel.sdk": {},
    "snowplow.enriched": {},
    "snowplow.tracker": BROKER,
    "snowplow.tsv": {},
    "cloudevents.structured": {},
    "cloudevents.binary": {},
    "github.events": {},
}
"""The settings of each, beside the schema."""
BROKER_MS = 1_714_554_000_000
"""2024-05-01 09:00:00 UTC"""
Expected = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """One file of samples."""

    name: str

    @property
    def preset(self) -> str:
        return self.name.partition(".")[0]

    @property
    def settings(self) -> Settings:
        return Settings.model_validate({"schema": self.preset, **FORMS[self.name]})

    @property
    def schema(self) -> Schema:
        return self.settings.schema_of_events

    @property
    def decoder(self) -> Decoder:
        return Decoder(DecodeConfig(self.schema, 60_000, 1 << 20, self.settings.preset.hints))

    @property
    def lines(self) -> list[bytes]:
        return (FOLDER / f"{self.name}.ndjson").read_bytes().splitlines()

    @property
    def expected(self) -> list[Expected]:
        text = (FOLDER / f"{self.name}.expected").read_bytes()
        return [orjson.loads(line) for line in text.splitlines()]

    @property
    def frame(self) -> Frame:
        (frame,) = self.decoder.decode([messages(self.lines)])
        return frame


def messages(lines: list[bytes]) -> Messages:
    """As a topic has them, a second apart."""
    offsets = np.arange(len(lines), dtype=np.int64)
    return Messages(NAME, lines, offsets, BROKER_MS + 1000 * offsets, len(lines))
