"""Peers: what a user would pick instead, each a small program in an environment of its own.

    python -m benchmarks.peers NAME ingest BOOTSTRAP TOPIC MESSAGES FOLDER
    python -m benchmarks.peers NAME count FOLDER

Each takes the same topic, keeps each event once by (device_id, insert_id), with the same typed
columns and the whole message where it keeps messages at all, and ends when all are durable in
FOLDER. `count`, which is not measured, prints how many it kept.
"""
