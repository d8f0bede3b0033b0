"""The spool on disk: what a writer, a crash and a full disk may do to it."""

import json
import multiprocessing
import resource
from pathlib import Path

import pytest

from trainer.tracking import spool
from trainer.tracking.spool import SpoolReader, SpoolWriter


def record(number: int) -> spool.Record:
    return {"run_id": "r", "metrics": [{"key": "m", "value": float(number), "timestamp": 0, "step": number}]}


def steps(reader: SpoolReader) -> list[int | None]:
    return [line.record["metrics"][0]["step"] if line.record else None for line in reader.read(most=10_000)]


def _append_many(path: Path, start: int) -> None:
    for number in range(start, start + 200):
        spool.append(path, record(number))


def test_writers_in_several_processes_lose_and_mix_nothing(tmp_path: Path) -> None:
    """Guards: launch (system metrics) and rank 0 append at the same time; unlocked writes tear each other's lines."""
    path = tmp_path / "spool.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, start)) for start in (0, 200, 400)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(steps(SpoolReader(path))) == list(range(600))


def test_a_torn_line_costs_no_other_record(tmp_path: Path) -> None:
    """Guards: a writer killed in mid-line leaves no newline, and the next record would be glued to the torn one."""
    path = tmp_path / "spool.jsonl"
    spool.append(path, record(0))
    with open(path, "ab") as file:
        file.write(b'{"run_id": "r", "metr')
    assert steps(SpoolReader(path)) == [0]  # may still be in writing
    spool.append(path, record(1))
    assert steps(SpoolReader(path)) == [0, None, 1]


def test_reading_goes_on_where_the_last_delivery_ended(tmp_path: Path) -> None:
    """Guards: a restarted launch that delivers everything again, or skips what came meanwhile."""
    path = tmp_path / "spool.jsonl"
    for number in range(3):
        spool.append(path, record(number))
    reader = SpoolReader(path)
    lines = reader.read(most=2)
    assert len(lines) == 2
    reader.delivered(lines[-1].end)
    spool.append(path, record(3))
    assert steps(SpoolReader(path)) == [2, 3]


def test_a_place_that_a_power_loss_emptied_costs_nothing(tmp_path: Path) -> None:
    """Guards: a job that can never be closed, since the file with its place in the spool is empty (tried)."""
    path = tmp_path / "spool.jsonl"
    spool.append(path, record(0))
    (tmp_path / "spool.offset").write_text("")
    assert steps(SpoolReader(path)) == [0]


def test_the_two_readers_of_a_spool_keep_two_places(tmp_path: Path) -> None:
    """Guards: metrics that are skipped because the files behind them were sent first (tried)."""
    path = tmp_path / "spool.jsonl"
    spool.append(path, record(0))
    files = SpoolReader(path, ".uploads")
    files.delivered(files.read(most=1)[-1].end)
    assert steps(SpoolReader(path)) == [0] and steps(SpoolReader(path, ".uploads")) == []


def test_the_newest_timestamp_is_found_behind_what_has_none(tmp_path: Path) -> None:
    """Guards: a run that ended when somebody looked, and not at its last sign of life (tried)."""
    path = tmp_path / "spool.jsonl"
    assert spool.newest_timestamp(path) is None
    for timestamp in (5, 9, 7):
        spool.append(path, {"run_id": "r", "metrics": [{"key": "m", "value": 0, "timestamp": timestamp, "step": 0}]})
    spool.append(path, {"run_id": "r", "artifact": "a.txt", "copy": "1-a"})
    with open(path, "ab") as file:
        file.write(b'{"run_id": "r", "metr')
    assert spool.newest_timestamp(path) == 9


def test_a_place_that_cannot_be_kept_stops_no_delivery(tmp_path: Path) -> None:
    """Guards: a full disk on which the reader stands still and delivers the same for ever. (It was found so.)"""
    path = tmp_path / "spool.jsonl"
    spool.append(path, record(0))
    (tmp_path / "spool.offset-partial").mkdir()  # whoever writes there gets an OSError
    reader = SpoolReader(path)
    reader.delivered(reader.read(most=1)[-1].end)
    assert reader.read(most=1) == []


def test_a_full_disk_leaves_no_half_record(tmp_path: Path) -> None:
    """Guards: half a record at the end of the spool after ENOSPC or EFBIG, and an error that nobody sees."""
    path = tmp_path / "spool.jsonl"
    spool.append(path, record(0))
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(OSError):
            spool.append(path, record(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    assert json.loads(path.read_text())["metrics"][0]["step"] == 0


def test_what_a_full_disk_does_not_take_waits_in_order(tmp_path: Path) -> None:
    """Guards: metrics that a full disk loses, or puts out of order once it has room; a line for each of them."""
    path = tmp_path / "spool.jsonl"
    said: list[str] = []
    writer = SpoolWriter(path, said.append)
    writer.append(record(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        for number in (1, 2, 3):
            writer.append(record(number))
        with pytest.raises(OSError, match="3 records could not be written"):
            writer.flush(patience=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(SpoolReader(path)) == [0]
    writer.append(record(4))
    writer.flush(patience=0)
    assert steps(SpoolReader(path)) == [0, 1, 2, 3, 4]
    assert len(said) == 2 and "waits in memory" in said[0] and "can be written again" in said[1], said
