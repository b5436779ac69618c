"""The columns that every peer keeps: those of Forebay's `amplitude` schema, by their JSON names."""

from __future__ import annotations

KEY = ("device_id", "insert_id")
UPLOAD_TIME = "server_upload_time"
TIMES = (UPLOAD_TIME, "event_time")
INTEGERS = ("amplitude_id", "session_id", "event_id")
TEXTS = (
    "device_id", "insert_id", "uuid", "event_type", "user_id", "platform", "os_name",
    "version_name", "country", "city", "language",
)  # fmt: skip
COLUMNS = (*TIMES, *TEXTS, *INTEGERS)


def json_name(column: str) -> str:
    """The name of a column in a message."""
    return "$insert_id" if column == "insert_id" else column
