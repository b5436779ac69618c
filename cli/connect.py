"""`forebay config check --connect`: connect to the source, and try some of its messages.

It changes nothing: no topic is created, no offset is committed, nothing is written. Each request
has a time limit, and only a few messages are read.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from typing import cast

import click
import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from forebay.flows.in_force import schema_in_force
from forebay.flows.secrets import masked
from forebay.flows.settings import Settings
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.content import Content
from forebay.operators.sources.folder import FilesConfig, file_partitions
from forebay.operators.sources.messages import Messages
from forebay.operators.sources.topic import partition_key
from forebay.storage.base.errors import BadInput, ForebayError
from forebay.storage.base.text import count_text, did_you_mean, plain
from forebay.storage.base.times import now_ms
from forebay.storage.formats.outcome import ADVICE, Outcome

ANSWER_S, READ_S, HEARD_S = 10.0, 5.0, 0.1
MESSAGES, PARTITIONS_MAX, FILES_MAX = 100, 16, 8
HEAD_BYTES = 4 << 20

_AFTER = re.compile(r" \(after \d+ms in state .*\)$")
"""The part that makes a repeated error look like a different one."""

Sample = list[tuple[str, int, int, bytes]]
"""Partition, offset, broker time in ms, and the message."""


def ask(settings: Settings) -> list[str]:
    """Report whether the source can be read, and what its messages would become: a warning if some
    would be rejects, nothing if all would be events. Raises BadInput with all faults, and if most
    would be rejects."""
    sample = _interruptible(_topic, settings) if settings.source == "kafka" else _heads(settings)
    if not sample:
        click.echo("messages: none there to try")
        return []
    found = _tried(settings, sample)
    first, *rest = found.lines()
    click.echo("\n".join([f"messages: {len(sample):,} tried: {first}", *rest]))
    reasons = ", ".join(f"{n:,} {plain(reason)}" for reason, n in found.reasons.most_common())
    if found.most_are_rejects:
        raise BadInput(
            f"schema: expected messages that can become events, got {found.rejects:,} rejects among"
            f" {len(sample):,} ({reasons}): schema is {settings.event_schema!r}; {ADVICE}"
        )
    if not found.rejects:
        return []
    return [f"{found.rejects:,} of {len(sample):,} messages would be rejects: {reasons}"]


def _interruptible(question: Callable[[Settings], Sample], settings: Settings) -> Sample:
    """Its answer, fetched by a thread: librdkafka's calls last for seconds, and a thread in such a
    call does not notice Ctrl-C. Nor does an unlimited wait, if Polars has set its signal handler,
    which lets a wait go on."""
    answer: Future[Sample] = Future()

    def get() -> None:
        try:
            answer.set_result(question(settings))
        except BaseException as error:  # noqa: BLE001
            answer.set_exception(error)

    threading.Thread(target=get, daemon=True).start()
    while not wait([answer], HEARD_S).done:
        pass
    return answer.result()


def _tried(settings: Settings, sample: Sample) -> Outcome:
    """The messages, decoded as in the job; those that would be events count as accepted."""
    config = DecodeConfig(
        schema_in_force(settings),
        settings.future_skew,
        settings.message_bytes_max,
        settings.preset.hints,
    )
    decoder, found = Decoder(config), Outcome()
    for partition, mine in groupby(sample, itemgetter(0)):
        _, offsets, times_ms, values = zip(*mine, strict=True)
        item = Messages(
            source=partition,
            values=list(values),
            offsets=np.array(offsets, dtype=np.int64),
            times_ms=np.array(times_ms, dtype=np.int64),
            next_offset=offsets[-1] + 1,
            read_ms=now_ms(),
        )
        for frame in decoder.decode([item]):
            found.accepted += frame.events.num_rows
            found.take(frame.rejects)
    return found


def _topic(settings: Settings) -> Sample:
    """The newest messages of the topic."""
    kafka = settings.kafka
    errors: list[KafkaError] = []
    silent = logging.Logger("forebay.connect", level=logging.CRITICAL + 1)
    own = {"error_cb": errors.append, "logger": silent}
    consumer = Consumer({**settings.kafka_config.consumer(), **own})
    try:
        # All topics: asking for one by name might create it.
        topics = consumer.list_topics(timeout=ANSWER_S).topics
        known = topics.get(kafka.topic)
        if known is None or known.error is not None:
            reason = f": {known.error.str()}" if known is not None and known.error else ""
            raise BadInput(
                f"kafka.topic: expected a topic of {kafka.bootstrap}, got {kafka.topic!r}{reason}"
                f"{did_you_mean(kafka.topic, topics)}"
            )
        count = len(known.partitions)
        has = count_text(count, "partition")
        click.echo(f"kafka: {kafka.bootstrap} answers; topic {kafka.topic} has {has}")
        return _newest(consumer, kafka.topic, sorted(known.partitions))
    except KafkaException as error:
        consumer.poll(0)  # runs the callback
        reported = [error.args[0], *errors]
        reasons = dict.fromkeys(_AFTER.sub("", plain(masked(one.str()))) for one in reported)
        raise BadInput(
            f"kafka.bootstrap: expected an answer from {masked(kafka.bootstrap)} within"
            f" {ANSWER_S:.0f} s, got: {'; '.join(reasons)}"
        ) from error
    finally:
        consumer.close()


def _newest(consumer: Consumer, topic: str, numbers: list[int]) -> Sample:
    """Some of the last messages of some partitions, within READ_S."""
    numbers, deadline = numbers[:PARTITIONS_MAX], time.monotonic() + READ_S
    share = -(-MESSAGES // len(numbers))
    ends: dict[int, int] = {}
    starts = []
    for number in numbers:
        place = TopicPartition(topic, number)
        low, high = consumer.get_watermark_offsets(place, timeout=READ_S)
        if high > low:
            ends[number] = high
            starts.append(TopicPartition(topic, number, max(low, high - share)))
    consumer.assign(starts)
    found: Sample = []
    while ends and (left_s := deadline - time.monotonic()) > 0:
        for message in consumer.consume(MESSAGES, timeout=min(left_s, 0.2)):
            number, offset = cast(int, message.partition()), cast(int, message.offset())
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    ends.pop(number, None)  # only markers follow its last message
                continue
            if number in ends:
                name = partition_key(topic, number).name
                found.append((name, offset, message.timestamp()[1], message.value() or b""))
            if offset + 1 >= ends.get(number, 0):
                ends.pop(number, None)
    return sorted(found)


def _heads(settings: Settings) -> Sample:
    """The first lines of some of the files."""
    paths = file_partitions(FilesConfig(settings.files.path, leave_out=settings.data_dir))
    click.echo(f"files: {len(paths):,} at {plain(str(settings.files.path))}")
    found: Sample = []
    faults = []
    share = -(-MESSAGES // min(len(paths), FILES_MAX))
    for key, path in sorted(paths.items())[:FILES_MAX]:
        try:
            with closing(Content(path)) as content:
                for number, line in enumerate(_head(content)[:share]):
                    if line.strip():
                        found.append((key.name, number, content.time_ms, line))
        except (OSError, ForebayError) as error:
            faults.append(f"files.path: {plain(str(error))}")
    if faults:
        raise BadInput("\n".join(faults))
    return found


def _head(content: Content) -> list[bytes]:
    """The whole lines among the first bytes of a file, decompressed."""
    data = bytearray()
    while len(data) < HEAD_BYTES and (piece := content.read()):
        data += piece
    lines = bytes(data).split(b"\n")
    return lines if len(data) < HEAD_BYTES or len(lines) == 1 else lines[:-1]
