"""Values as spool records, as what one `log_batch` can carry, and apart again where a server refuses a batch."""

import json

from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.validation import MAX_ENTITIES_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from trainer.tracking.spool import Record, is_values


def record_of(run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> Record:
    """One `log_batch` as a spool record: dictionaries of plain values under the entities' own argument names."""
    return {
        "run_id": run_id,
        "metrics": [dict(metric) for metric in metrics],
        "params": [dict(param) for param in params],
        "tags": [dict(tag) for tag in tags],
    }


def values(record: Record) -> tuple[list[Metric], list[Param], list[RunTag]]:
    """A record's values as MLflow's entities, tried as what goes over the wire; raises whatever MLflow raises."""
    entities = (
        [Metric(**metric) for metric in record["metrics"]],
        [Param(**param) for param in record["params"]],
        [RunTag(**tag) for tag in record["tags"]],
    )
    for kind in entities:
        for value in kind:
            value.to_proto()
    return entities


def as_line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def in_batches(records: list[Record]) -> list[list[Record]]:
    """Group records in order: values of one run within what one `log_batch` may carry, all else alone."""
    batches: list[list[Record]] = []
    metrics = others = 0
    for record in records:
        more_metrics, more_others = len(record.get("metrics", [])), _others(record)
        if (
            not batches
            or not is_values(record)
            or not is_values(batches[-1][0])
            or batches[-1][0]["run_id"] != record["run_id"]
            or metrics + more_metrics + others + more_others > MAX_ENTITIES_PER_BATCH
            or others + more_others > MAX_PARAMS_TAGS_PER_BATCH
        ):
            batches.append([])
            metrics = others = 0
        batches[-1].append(record)
        metrics, others = metrics + more_metrics, others + more_others
    return batches


def _others(record: Record) -> int:
    return len(record.get("params", [])) + len(record.get("tags", []))


def parts(record: Record) -> list[Record]:
    """One record for each value in it; none where it holds only one."""
    found = [
        {"run_id": record["run_id"], kind: [value]}
        for kind in ("metrics", "params", "tags")
        for value in record.get(kind, [])
    ]
    return found if len(found) > 1 else []


def merged(batch: list[Record]) -> Record:
    """The batch as one record; the server refuses the same param or tag twice in one request."""
    params = {(param["key"], param["value"]): param for record in batch for param in record.get("params", [])}
    tags = {tag["key"]: tag for record in batch for tag in record.get("tags", [])}
    return {
        "run_id": batch[0]["run_id"],
        "metrics": [metric for record in batch for metric in record.get("metrics", [])],
        "params": list(params.values()),
        "tags": list(tags.values()),
    }
