"""What a lab holds, through MLflow's own API: every run, point, model and artifact, to be compared with another lab."""

import hashlib
import json
import urllib.parse
import urllib.request
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from compose import REPOSITORY, Stack

Contents = dict[str, dict[str, Any]]  # by kind, then by name or id


def artifacts(stack: Stack) -> dict[str, str]:
    """The SHA-256 of every artifact that the server offers, whichever run or model it belongs to."""
    found: dict[str, str] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        url = f"{stack.uri}/api/2.0/mlflow-artifacts/artifacts"
        with urllib.request.urlopen(f"{url}?path={urllib.parse.quote(folder)}") as answer:
            entries = json.load(answer).get("files", [])
        for entry in entries:
            path = f"{folder}/{entry['path']}".lstrip("/")
            if entry.get("is_dir"):
                folders.append(path)
                continue
            with urllib.request.urlopen(f"{url}/{urllib.parse.quote(path)}") as answer:
                found[path] = hashlib.file_digest(answer, "sha256").hexdigest()
    return found


def points(client: MlflowClient, run: Run) -> dict[str, list[str]]:
    """Every point of every metric of a run. As text, in which NaN equals NaN and no digit is lost."""
    return {
        key: [
            repr((point.step, point.timestamp, point.value))
            for point in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
    }


def pages(ask: Any, **arguments: Any) -> list[Any]:
    """All pages of one of the client's searches."""
    found: list[Any] = []
    token = None
    while token != "":
        page = ask(**arguments, page_token=token)
        found += page
        token = page.token or ""
    return found


def contents(stack: Stack) -> Contents:
    """Everything that a lab holds, by kind and name, each as something that can be compared."""
    client = stack.client
    experiments = pages(client.search_experiments, view_type=ViewType.ALL)
    ids = [experiment.experiment_id for experiment in experiments]
    runs = pages(client.search_runs, experiment_ids=ids, run_view_type=ViewType.ALL)
    models = pages(client.search_logged_models, experiment_ids=ids)
    registered = pages(client.search_registered_models)
    versions = pages(client.search_model_versions)
    return {
        "experiments": {experiment.experiment_id: dict(experiment) for experiment in experiments},
        "runs": {
            run.info.run_id: {
                "info": dict(run.info),
                "params": run.data.params,
                "tags": run.data.tags,
                "inputs": _in_order(run.inputs.to_dictionary()),
                "outputs": _in_order(run.outputs.to_dictionary()) if run.outputs else None,
            }
            for run in runs
        },
        "metrics": {run.info.run_id: points(client, run) for run in runs},
        "logged models": {model.model_id: model.to_dictionary() for model in models},
        "registered models": {
            model.name: {**dict(model), "latest_versions": len(model.latest_versions)} for model in registered
        },
        "model versions": {
            f"{version.name} {version.version}": {
                **dict(version),
                "metrics": repr(version.metrics),
                "params": repr(version.params),
            }
            for version in versions
        },
        "artifacts": artifacts(stack),
    }


def _in_order(lists: dict[str, Any]) -> dict[str, list[Any]]:
    """MLflow gives datasets and models of a run in whatever order its database has them."""
    return {name: sorted(found, key=repr) for name, found in lists.items()}


def tables(stack: Stack) -> str:
    """The count and the hash of every table: what a restore compares too, and quickly."""
    statements = (REPOSITORY / "docker" / "contents.sql").read_text()
    return stack.inside(
        "postgres", f"psql --quiet --no-align --tuples-only -U mlflow -d mlflow <<'SQL'\n{statements}\nSQL"
    )


def counted(kind: str, held: dict[str, Any]) -> int:
    return sum(len(history) for run in held.values() for history in run.values()) if kind == "metrics" else len(held)


def digest(held: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(held, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def print_table(before: Contents, after: Contents) -> None:
    print(f"\n{'':20}{'before':>10}{'after':>10}  {'hash before':18}hash after")
    for kind in before:
        left, right = before[kind], after[kind]
        print(f"{kind:20}{counted(kind, left):>10}{counted(kind, right):>10}  {digest(left):18}{digest(right)}")


def assert_equal(before: Contents, after: Contents) -> None:
    print_table(before, after)
    for kind in before:
        assert before[kind] == after[kind], kind


def without(runs: set[str], held: Contents) -> Contents:
    """The same without these runs, their models and their artifacts."""

    def kept(kind: str, name: str, value: Any) -> bool:
        if kind == "logged models":
            return value["source_run_id"] not in runs
        if kind == "artifacts":
            return not any(run in name for run in runs) and not any(model in name for model in models)
        return name not in runs

    models = {name for name, model in held["logged models"].items() if model["source_run_id"] in runs}
    return {
        kind: {name: value for name, value in found.items() if kept(kind, name, value)} for kind, found in held.items()
    }
