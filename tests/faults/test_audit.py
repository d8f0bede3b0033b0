"""The audit goes red: an audit that cannot fail would pass every fault."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from compose import NEEDS_ENGINE, Stack
from faults.audit import Audit, audit
from faults.servers import Servers
from faults.training import Training

pytestmark = [pytest.mark.fault, *NEEDS_ENGINE]


def test_the_audit_sees_what_is_untrue(servers: Servers, stack: Stack, tmp_path: Path) -> None:
    """Guards: a point that is lost, twice there or wrong; a file or a model that is cut; a status that is not true; a
    rest on disk; a second run. Each is made by hand on a good run, one after the other."""
    training = Training(tmp_path, servers.uri, "audited")
    training.run_until_it_ends_by_itself()
    client = MlflowClient(servers.uri)
    (run,) = stack.runs("audited")
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    half = tmp_path / "half"
    assert training.job is not None
    folder = training.job.folder
    best = folder / "checkpoints" / "best.ckpt"

    def checked() -> Audit:
        return audit(servers.uri, "audited", training.lab / "state", training.truth)

    def database(statement: str) -> None:
        stack.inside("postgres", f'psql --quiet -U mlflow -d mlflow -c "{statement}"')

    def cut(path: str) -> None:
        whole = Path(client.download_artifacts(run_id, path, str(tmp_path))).read_bytes()
        half.mkdir(exist_ok=True)
        (half / Path(path).name).write_bytes(whole[: len(whole) // 2])
        client.log_artifact(run_id, str(half / Path(path).name), str(Path(path).parent))

    def replay_otherwise() -> None:
        with open(training.truth / "truth.csv", "a") as file:
            file.write("0.0,train_loss,1,0.123\n")

    lost = f"delete from metrics where run_uuid = '{run_id}' and key = 'train_loss' and step = 3"
    wrong = f"update metrics set value = 7 where run_uuid = '{run_id}' and key = 'batch_loss' and step = 5"
    gap = f"delete from metrics where run_uuid = '{run_id}' and key like 'system/cpu%' and step = 1"
    untrue: list[tuple[str, Callable[[], object]]] = [
        ("1 points lost: [('train_loss', 3)]", lambda: database(lost)),
        ("1 points there twice: [('val_loss', 1)]", lambda: client.log_metric(run_id, "val_loss", 5.0, step=1)),
        ("('batch_loss', 5)", lambda: database(wrong)),
        ("3 points wrong", lambda: client.log_metric(run_id, "never_logged", 1.0)),
        ("has gaps", lambda: database(gap)),
        ("when it was replayed", replay_otherwise),
        ("files/payload.bin: ", lambda: cut("files/payload.bin")),
        ("the run's last.ckpt is of epoch None", lambda: cut("checkpoints/last.ckpt")),
        ("status KILLED of a job", lambda: client.set_terminated(run_id, "KILLED")),
        ("tag failure of an end that was none", lambda: client.set_tag(run_id, "failure", "x")),
        ("left in the outbox", lambda: (folder / "outbox" / "1-x").mkdir(parents=True)),
        ("records of the spool are not delivered", lambda: (folder / "spool.offset").write_text("0")),
        ("a file that is no checkpoint", lambda: (folder / "checkpoints" / "last.partial").touch()),
        ("a logged model is PENDING", lambda: client.create_logged_model(experiment_id, source_run_id=run_id)),
        ("the model is not the best", lambda: shutil.copyfile(best.with_name("last.ckpt"), best)),
        ("2 runs instead of one", lambda: client.create_run(experiment_id)),
    ]
    assert checked().problems == []
    for says, make in untrue:
        make()
        problems = checked().problems
        assert any(says in problem for problem in problems), f"{says} is not among {problems}"


def test_a_job_that_never_ran_is_no_success(servers: Servers, tmp_path: Path) -> None:
    """Guards: an empty truth beside an empty run, which differ in nothing."""
    client = MlflowClient(servers.uri)
    client.create_run(client.create_experiment("never-ran"))
    problems = audit(servers.uri, "never-ran", tmp_path, tmp_path).problems
    assert "no training came to its end" in problems and "status RUNNING of a job that ended by itself" in problems
