"""`flows.settings`: where values come from, what they may be, and how faults are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ByteSize

from forebay.flows.sections import OWNED
from forebay.flows.settings import Settings, load, shown
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import size_text
from forebay.storage.base.times import duration_ms, duration_text
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.schema import UPLOAD_TIME, Column

Write = Callable[[str], None]


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: None) -> Write:
    """Writes forebay.toml in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def toml(text: str) -> None:
        (tmp_path / "forebay.toml").write_text(text)

    return toml


def faults() -> list[str]:
    with pytest.raises(BadInput) as caught:
        load()
    return str(caught.value).splitlines()


# -- where values come from ---------------------------------------------------------------------


def test_without_a_file_or_environment_everything_has_its_default() -> None:
    settings = load()
    assert (settings.source, settings.data_dir, settings.event_schema) == (
        "files",
        Path("data"),
        "amplitude",
    )
    assert (settings.block_span, settings.dedup_window, settings.grace) == (
        300_000,
        600_000,
        600_000,
    )
    assert settings.schema_of_events.key == ("device_id", "insert_id")
    assert settings.cache_bytes == 384 * 1024**2


def test_the_environment_wins_over_the_file_and_arguments_over_both(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('data_dir = "file"\ngrace = "1h"\nbatch_rows = 7\n[kafka]\ntopic = "t"\ngroup = "g"\n')
    monkeypatch.setenv("FOREBAY_DATA_DIR", "environment")
    monkeypatch.setenv("FOREBAY_GRACE", "2h")
    monkeypatch.setenv("FOREBAY_KAFKA__TOPIC", "T")
    settings = load(data_dir="argument")
    assert settings.data_dir == Path("argument")
    assert settings.grace == duration_ms("2h")
    assert settings.batch_rows == 7
    assert (settings.kafka.topic, settings.kafka.group) == ("T", "g")
    assert settings.kafka.bootstrap == "localhost:9092"


def test_forebay_config_names_another_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("batch_rows = 1")
    (tmp_path / "other.toml").write_text("batch_rows = 2")
    monkeypatch.setenv("FOREBAY_CONFIG", "other.toml")
    assert load().batch_rows == 2


# -- faults -------------------------------------------------------------------------------------


def test_every_fault_is_told_at_once_by_name_with_what_was_expected_and_what_came(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        """
        source = "udp"
        blocks_per_chunk = 0
        colour = "red"
        [kafka]
        start = "middle"
        speed = 3
        librdkafka = { "group.id" = "mine" }
        [[columns]]
        name = "raw"
        path = "x"
        [[columns]]
        name = "fine"
        path = "x"
        type = "blob"
        """
    )
    monkeypatch.setenv("FOREBAY_GRACE", "soon")
    monkeypatch.setenv("FOREBAY_KAFKA__LINGER", "-1s")
    monkeypatch.setenv("FOREBAY_TOPIC", "events")
    told = dict(fault.split(": ", 1) for fault in faults())
    assert told == {
        "FOREBAY_TOPIC": "expected one of the settings, got an unknown name; did you mean"
        " 'FOREBAY_KAFKA__TOPIC'?",
        "source": "expected 'files' or 'kafka', got 'udp'",
        "blocks_per_chunk": "expected at least 1, got 0",
        "colour": "expected one of the settings, got an unknown name",
        "kafka.start": "expected 'earliest' or 'latest', got 'middle'",
        "kafka.speed": "expected one of [kafka], got an unknown name",
        "kafka.linger": "expected a time such as '500ms', '90s', '10m' or '7d', got '-1s'",
        "kafka.librdkafka": "expected none of the properties Forebay sets itself, got ['group.id']",
        "columns.0.name (name 'raw')": "expected a name other than _offset, _partition, raw,"
        " upload_time, got 'raw'",
        "columns.1.type (name 'fine')": "expected 'string', 'id', 'text', 'int', 'float', 'bool',"
        " 'time', 'time_s', 'time_us' or 'time_auto', got 'blob'",
        "grace": "expected a time such as '500ms', '90s', '10m' or '7d', got 'soon'",
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('schema = "matomo"', "schema"),
        ('schema = "none"', "dedup_key"),
        ('dedup_key = ["session"]', "dedup_key"),
        ('dedup_key = ["uuid", "uuid"]', "dedup_key"),
        ('dedup_key = ["f"]\ncolumns = [{name = "f", path = "f", type = "float"}]', "dedup_key"),
        ('dedup_key = ["f"]\ncolumns = [{name = "f", path = "f", type = "text"}]', "dedup_key"),
        ('columns = [{name = "city", path = "c"}]', "columns"),
        ('columns = [{name = "a", path = "c"}, {name = "a", path = "d"}]', "columns"),
        ('columns = [{name = "a b", path = "c"}]', "columns.0.name (name 'a b')"),
        ('columns = [{name = "a"}]', "columns.0.path (name 'a')"),
        ('columns = [{name = "a", path = []}]', "columns.0.path (name 'a')"),
        ('dedup_window = "10 fortnights"', "dedup_window"),
        ("dedup_window = true", "dedup_window"),
        ('dedup_window = "999ms"', "dedup_window"),
        ("epoch_interval = 0", "epoch_interval"),
        pytest.param(f"grace = {'9' * 400}", "grace", id="endless grace"),
        ('cache_bytes = "5 parsecs"', "cache_bytes"),
        ("cache_bytes = 5", "cache_bytes"),
        ("batch_rows = 100001", "batch_rows"),
        ("hash_partitions = -1", "hash_partitions"),
        ('raw = "perhaps"', "raw"),
        ("[kafka]\ntopic = 5", "kafka.topic"),
        ("[files]\npath = 5", "files.path"),
    ],
)
def test_a_value_that_cannot_work_is_a_fault_under_its_own_name(
    text: str, name: str, write: Write
) -> None:
    write(text)
    (fault,) = faults()
    assert fault.startswith(f"{name}: expected")
    assert "got" in fault


def test_a_file_that_is_no_toml_is_named_beside_the_other_faults(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("grace = soon")
    monkeypatch.setenv("FOREBAY_SPEED", "9")
    unknown, broken = faults()
    assert unknown.startswith("FOREBAY_SPEED: expected")
    assert broken.startswith("forebay.toml: ")
    assert "line 1" in broken


@pytest.mark.parametrize("name", ["FOREBAY_EVENT_SCHEMA", "FOREBAY_KAFKA_TOPIC", "FOREBAY_"])
def test_a_variable_of_no_setting_is_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "segment")
    (fault,) = faults()
    assert fault.startswith(f"{name}: expected one of the settings, got an unknown name")


def test_a_file_named_by_the_environment_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_CONFIG", "nowhere.toml")
    assert faults() == ["FOREBAY_CONFIG: expected a file, got 'nowhere.toml'"]


def test_a_variable_that_is_no_json_is_a_fault_of_that_setting_beside_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FOREBAY_COLUMNS", "[{nope")
    monkeypatch.setenv("FOREBAY_GRACE", "soon")
    told = "\n".join(faults())
    assert "columns" in told.lower()
    assert "grace" in told
    assert "forebay.toml" not in told


# -- times and sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("500ms", 500), ("90s", 90_000), ("10m", 600_000), ("1h", 3_600_000), ("1d", 86_400_000),
        ("1.5m", 90_000), (" 2 s ", 2_000), (0, 0), ("0", 0),
    ],
)  # fmt: skip
def test_a_time_is_a_number_and_a_unit_that_only_0_needs_not(value: object, ms: int) -> None:
    assert duration_ms(value) == ms


@pytest.mark.parametrize("value", [7, 0.25, "7", " 90 "])
def test_a_number_without_a_unit_is_no_time(value: object) -> None:
    with pytest.raises(ValueError, match=r"with its unit, such as .* or '7d'"):
        duration_ms(value)


@given(st.integers(0, 10**15))
def test_the_text_of_a_time_reads_back_as_the_same_time(ms: int) -> None:
    assert duration_ms(duration_text(ms)) == ms


def test_sizes_are_bytes_or_text_with_a_unit(write: Write) -> None:
    write('cache_bytes = "64MiB"\nmessage_bytes_max = 5000')
    assert (load().cache_bytes, load().message_bytes_max) == (64 * 1024**2, 5000)


def _of_a_number() -> list[str]:
    """The settings that have a whole number of anything: sizes, counts and times."""
    found = []
    for name, field in Settings.model_fields.items():
        inner = getattr(type(field.default), "model_fields", {})
        numbers = [key for key, one in inner.items() if type(one.default) in (int, ByteSize)]
        found += [f"{name}.{key}" for key in numbers]
        found += [name] if type(field.default) in (int, ByteSize) else []
    return found


def test_true_is_a_number_nowhere(write: Write) -> None:
    names = _of_a_number()
    assert {"retention_bytes", "batch_rows", "batch.memory", "kafka.linger"} <= {*names}
    write("\n".join(f"{name} = true" for name in names))
    told = faults()
    assert {fault.partition(":")[0] for fault in told} == {*names}
    assert all(fault.endswith(", got true") for fault in told)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("200", "retention_bytes: expected 0, or at least 1 MiB, got 200"),
        ("-5", "retention_bytes: expected a size such as 65536, '512KiB' or '4MiB', got -5"),
        ("1.5", "retention_bytes: expected a size such as 65536, '512KiB' or '4MiB', got 1.5"),
        (
            "1TB",
            'forebay.toml: line 1: expected quotes around a size or a time, as in "64MiB" or "7d",'
            " got none",
        ),
    ],
)
def test_a_size_that_was_hardly_meant_is_a_fault(value: str, fault: str, write: Write) -> None:
    write(f"retention_bytes = {value}")
    assert faults() == [fault]
    write("retention_bytes = 0")
    assert load().retention_bytes == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (1023, "1,023 bytes"), (1 << 20, "1 MiB"), (64 << 20, "64 MiB"),
        (1536, "1.5 KiB"), (3 << 40, "3 TiB"), (5000 << 40, "5,000 TiB"),
    ],
)  # fmt: skip
def test_a_size_is_shown_in_the_largest_unit_of_which_there_is_one(count: int, text: str) -> None:
    assert size_text(count) == text


# -- the schema ---------------------------------------------------------------------------------


def test_own_columns_follow_those_of_the_preset_and_may_be_the_dedup_key(write: Write) -> None:
    write(
        """
        schema = "cloudevents"
        dedup_key = ["tenant", "id"]
        raw = false
        [[columns]]
        name = "tenant"
        path = "data.tenant"
        [[columns]]
        name = "price"
        path = ["data", "price.eur"]
        type = "float"
        """
    )
    schema = load().schema_of_events
    assert schema.columns[-2:] == (
        Column("tenant", ("data", "tenant")),
        Column("price", ("data", "price.eur"), "float"),
    )
    assert schema.key == ("tenant", "id")
    assert arrow_schema(schema).names[3:5] == ["source", "id"]
    assert arrow_schema(schema).names[-1] == "price"


def test_a_column_may_have_several_paths_and_so_may_the_upload_time(write: Write) -> None:
    write(
        """
        schema = "none"
        dedup_key = ["id", "tenant?"]
        upload_time = ["meta.at", "at"]
        columns = [
            { name = "id", paths = ["$insert_id", ["a.b", "c"], "uuid"], type = "id" },
            { name = "tenant", path = ["tenant", "id"] },
        ]
        """
    )
    schema = load().schema_of_events
    assert schema.columns == (
        Column("id", ("$insert_id",), "id", (("a.b", "c"), ("uuid",))),
        Column("tenant", ("tenant", "id")),
    )
    assert schema.upload_time == Column(UPLOAD_TIME, ("meta", "at"), "time", (("at",),))
    assert (schema.key, schema.optional) == (("id", "tenant"), ("tenant",))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "upload_time = 5",
            "upload_time: expected a path such as a.b.c, or a list of paths, got 5",
        ),
        (
            'columns = [{name = "a", path = "b", paths = ["c"]}]',
            "columns.0.path (name 'a'): expected either path or paths, got both",
        ),
        (
            'columns = [{name = "a", paths = []}]',
            "columns.0.paths (name 'a'): expected at least 1 entry, got []",
        ),
        (
            'columns = [{name = "a", paths = ["b", 3]}]',
            "columns.0.paths.1 (name 'a'): expected a path such as a.b.c, or a list of keys, got 3",
        ),
        (
            'columns = [{name = "a", paths = "b"}]',
            "columns.0.paths (name 'a'): expected a list of paths, got 'b'",
        ),
        (
            'columns = [{nam = "a", path = "b"}]',
            "columns.0.nam: expected one of [[columns]], got an unknown name; did you mean 'name'?",
        ),
        (
            'schema = "none"',
            'dedup_key: expected at least one column, because schema = "none" has no key of its'
            " own, got none",
        ),
        (
            'columns = [{name = "a", paths = ["b", []]}]',
            "columns.0.paths.1 (name 'a'): expected at least 1 entry, got []",
        ),
        (
            'columns = [{name = "n", path = "n", type = "int"}]\ndedup_key = ["device_id", "n?"]',
            "dedup_key: expected columns of text before '?', got ['n']",
        ),
        (
            'upload_time = ["a", "broker"]',
            "upload_time: expected paths, or \"broker\" alone, got ['a', 'broker']",
        ),
    ],
    ids=[
        "no path at all",
        "both",
        "no path",
        "a number as a path",
        "a path as paths",
        "a misspelt name",
        "no key",
        "an empty path",
        "an optional number",
        "the broker among paths",
    ],
)
def test_a_fault_in_several_paths_is_named(text: str, fault: str, write: Write) -> None:
    write(text)
    assert faults() == [fault]


def test_without_a_preset_there_are_own_columns_only(write: Write) -> None:
    write(
        """
        schema = "none"
        dedup_key = ["id"]
        upload_time = "$.at"
        upload_time_type = "time_us"
        columns = [{ name = "id", path = "id" }]
        """
    )
    schema = load().schema_of_events
    assert schema.columns == (Column("id", ("id",)),)
    assert schema.upload_time == Column(UPLOAD_TIME, ("at",), "time_us")


def test_the_upload_time_can_be_the_brokers(write: Write) -> None:
    write('upload_time = "broker"')
    assert load().schema_of_events.upload_time is None
    assert shown(load())["upload_time"] == "broker"


@pytest.mark.parametrize(
    "text",
    [
        'upload_time = "event_time"\nupload_time_type = "time_us"',
        'columns = [{name = "time_text", path = "event_time"}]',
        'columns = [{name = "p", path = "data"}, {name = "q", path = "data.q"}]',
    ],
    ids=["two units of a time", "two types", "a path through a column"],
)
def test_columns_that_read_one_value_as_two_types_are_a_fault(text: str, write: Write) -> None:
    write(text)
    assert len(faults()) == 1


# -- librdkafka, secrets ------------------------------------------------------------------------


def test_librdkafka_properties_are_passed_through_as_they_are(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('[kafka.librdkafka]\n"fetch.min.bytes" = 5\n"security.protocol" = "SSL"\n')
    assert load().kafka.librdkafka == {"fetch.min.bytes": 5, "security.protocol": "SSL"}
    monkeypatch.setenv("FOREBAY_KAFKA__LIBRDKAFKA", '{"check.crcs": true}')
    assert load().kafka.librdkafka["check.crcs"] is True


@pytest.mark.parametrize("name", OWNED)
def test_a_property_that_forebay_sets_itself_is_refused(name: str, write: Write) -> None:
    write(f'[kafka.librdkafka]\n"{name}" = "x"\n')
    (fault,) = faults()
    assert fault.startswith("kafka.librdkafka: expected")
    assert name in fault


SECRETS = (
    "sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret",
    "sasl.jaas.config", "ssl.keystore.password",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_never_shown(name: str, write: Write) -> None:
    write(f'[kafka.librdkafka]\n"{name}" = "hunter2"\n"sasl.username" = "me"\n')
    passed = shown(load())["kafka"]["librdkafka"]
    assert "hunter2" not in str(passed)
    assert passed["sasl.username"] == "me"
    assert load().kafka.librdkafka[name] == "hunter2"


def test_a_fault_never_tells_a_secret(write: Write) -> None:
    write('[kafka.librdkafka]\n"sasl.password" = ["hunter2"]\n"ssl.key.pem" = {a = "hunter2"}\n')
    told = "\n".join(faults())
    assert "sasl.password" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "text",
    [
        "",
        'grace = "90s"\ncache_bytes = "3MiB"\nraw = false\ndedup_window = "1.5s"',
        'schema = "mixpanel"\ncolumns = [{name = "a", path = ["b.c", "d"], type = "int"}]',
        'schema = "segment"\nupload_time = "a.b"\nupload_time_type = "time_s"',
        'upload_time = ["a.b", "$.c"]\ndedup_key = ["device_id", "user_id?"]',
        'columns = [{name = "a", paths = ["b.c", ["d.e"]], type = "id"}]',
        'schema = "mixpanel"',
        'upload_time_type = "time_s"',
        '[kafka.librdkafka]\n"fetch.min.bytes" = 5\n',
    ],
)
def test_what_is_shown_gives_the_same_events_when_it_is_loaded(text: str, write: Write) -> None:
    write(text)
    settings = load()
    again = Settings(**shown(settings))
    assert again.schema_of_events == settings.schema_of_events
    assert shown(again) == shown(settings)
