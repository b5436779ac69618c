"""The batch layer's table in Apache Spark: read whole, changed, compacted; and Forebay goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import forebay
from forebay.flows.batch import run_day
from forebay.storage.base.errors import MissingFile
from tests import spark_sql
from tests.days import (
    CONFIG,
    HOUR_MS,
    MakeJob,
    a_job,
    batch,
    day,
    event,
    everything,
    feed,
    hand_over,
    hand_over_as_before,
    ids,
    in_table,
    keys,
    once,
    run_job,
    starts_ms,
)
from tests.job import Job

pytestmark = pytest.mark.spark
TABLE = f"{spark_sql.CATALOG}.forebay.events"
DELETED = ("a-0-3", "b-0-4")
CHANGES = (
    f"merge into {TABLE} t using (select '{DELETED[0]}' as id) u on t.id = u.id"
    " when matched then delete",
    f"delete from {TABLE} where id = '{DELETED[1]}'",
    f"call {spark_sql.CATALOG}.system.rewrite_data_files(table => '{TABLE}',"
    " options => map('rewrite-all', 'true'))",
)
EXPIRE = (
    f"call {spark_sql.CATALOG}.system.expire_snapshots(table => '{TABLE}',"
    " older_than => timestamp '2100-01-01', retain_last => 1)"
)


@pytest.fixture(autouse=True)
def _spark() -> None:
    """Without Java or Maven the tests skip, unless REQUIRE_SPARK is set."""
    lack = spark_sql.missing()
    if lack:
        if os.environ.get("REQUIRE_SPARK"):
            pytest.fail(lack)
        pytest.skip(lack)


@pytest.fixture
def job(filled: Path, make_job: MakeJob) -> Job:
    job = a_job(make_job)
    shutil.copytree(filled, job.folder)
    return job


def test_spark_reads_changes_and_compacts_the_table_and_the_next_day_is_handed_over(
    job: Job,
) -> None:
    hand_over(job, 0)
    count, rows, *_, after = spark_sql.sql(
        job.data,
        f"select count(*) as n from {TABLE}",
        f"select * from {TABLE}",
        *CHANGES,
        f"select id, source_partition, _offset, _file, _partition from {TABLE}",
    )
    assert count == [{"n": len(keys(0))}]
    own = in_table(job).select("source_partition", "_offset", "id").rows()
    assert {(r["source_partition"], r["_offset"], r["id"]) for r in rows} == set(own)
    left = keys(0) - set(DELETED)
    assert {row["id"] for row in after} == left
    assert len({row["_file"] for row in after}) == 1

    assert ids(forebay.open(job.data).scan("all")) == everything(0)  # as it was handed over
    feed(job, "a", [event(key, starts_ms(0) + HOUR_MS) for key in ("late-0", "a-0-10")])
    run_job(job)
    hand_over(job, 1)
    assert ids(in_table(job)) == once(left | keys(1) | {"late-0"})
    expected = everything(1, "late-0")
    for key in DELETED:
        del expected[key]
    assert ids(forebay.open(job.data).scan("all")) == expected


def test_what_spark_expires_is_missed_by_name_until_the_last_day_is_run_again(job: Job) -> None:
    hand_over(job, 0)
    spark_sql.sql(job.data, *CHANGES, EXPIRE)
    with pytest.raises(MissingFile, match="a batch run of the last day names the table as it is"):
        forebay.open(job.data).scan("all").collect()
    assert run_day([job.data], CONFIG, day(0)).outcome == "completed before"
    expected = everything(0)
    for key in DELETED:
        del expected[key]
    assert ids(forebay.open(job.data).scan("all")) == expected
    hand_over(job, 1)
    assert ids(in_table(job)) == once((keys(0) | keys(1)) - set(DELETED))


def test_spark_reads_whole_a_table_that_was_made_before_its_column_had_another_name(
    job: Job,
) -> None:
    hand_over_as_before(job)
    hand_over(job, 1)
    through = once(keys(0) | keys(1))
    rows, *_, after = spark_sql.sql(
        job.data, f"select * from {TABLE}", *CHANGES, f"select * from {TABLE}"
    )
    assert {row["id"] for row in rows} == set(through)
    assert len(rows) == len(through)
    assert {row["source_partition"] for row in rows} == {"a.ndjson", "b.ndjson"}
    assert {row["id"] for row in after} == set(through) - set(DELETED)
    hand_over(job, 2)
    found = ids(in_table(job))
    assert found == once((keys(0) | keys(1) | keys(2)) - set(DELETED))
    assert batch(job).number == 3
