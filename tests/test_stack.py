"""The stack as a whole, in containers: `docker compose up trainer` and everything that README promises of it.

One stack serves all tests (conftest.py), in the order of this file: what changes it stands last.
"""

import json
import socket
import subprocess
import urllib.error
import urllib.request

import mlflow
import pytest

from compose import NEEDS_ENGINE, REPOSITORY, Stack

pytestmark = NEEDS_ENGINE

SERVERS = ("postgres", "minio", "mlflow")


def test_up_trains_one_finished_run(stack: Stack, trained: str) -> None:
    """Guards: the one command that the lab is about."""
    (run,) = stack.runs("digits")
    assert run.info.status == "FINISHED"
    url = f"http://localhost:{stack.ui_port}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert trained.count(url) == 2, "its URL stands at the start and in the summary"
    assert "FINISHED, best epoch" in trained and "test_acc" in trained
    assert "epoch 0/14" in trained, "readable progress in the log"
    assert stack.inspect("trainer")["State"]["ExitCode"] == 0


def test_the_way_out_is_cut(stack: Stack, trained: str) -> None:
    """Guards: a suite that claims to run offline while every container reaches the internet."""
    stack.in_trainer("import socket; socket.setdefaulttimeout(3); socket.socket().connect_ex(('192.0.2.1', 80))")
    counters = subprocess.run(["iptables", "-nvxL", "DOCKER-USER"], capture_output=True, text=True, check=True).stdout
    dropped = [int(line.split()[0]) for line in counters.splitlines() if " DROP " in line]
    assert len(dropped) == 2 and max(dropped) > 0, counters


def test_every_server_is_healthy(stack: Stack, trained: str) -> None:
    """Guards: a service without a healthcheck, or one that never passes."""
    services = [json.loads(line) for line in stack.must("ps", "--format", "json").splitlines() if line.startswith("{")]
    assert {service["Service"]: service["Health"] for service in services} == dict.fromkeys(SERVERS, "healthy")


def test_the_run_holds_everything(stack: Stack, trained: str) -> None:
    """Guards: a run that lacks metrics, parameters, configuration, provenance, system metrics or the model."""
    (run,) = stack.runs("digits")
    assert run.data.metrics["test_acc"] > 0.95
    for key in ("train_loss", "train_acc", "val_loss", "val_acc"):
        steps = [point.step for point in stack.client.get_metric_history(run.info.run_id, key)]
        assert steps == list(range(len(steps))) and len(steps) > 1, key
    for sensor in ("cpu_utilization_percentage", "system_memory_usage_percentage", "network_receive_megabytes"):
        assert f"system/{sensor}" in run.data.metrics
    assert run.data.params["model.init_args.architecture"] == "small_cnn"
    assert run.data.params["early_stopping.patience"] == "5"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.data.tags["mlflow.source.git.commit"] == head.stdout.strip(), "provenance in the read-only mount"
    assert run.data.tags["git.dirty"] in ("true", "false") and run.data.tags["hardware.gpus"] == "0"
    names = {artifact.path for artifact in stack.client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "model_summary.txt"} <= names


def test_artifacts_come_back_through_the_tracking_server(stack: Stack, trained: str, tmp_path: object) -> None:
    """Guards: a client that is sent to MinIO, which it cannot reach; a model that does not load."""
    (run,) = stack.runs("digits")
    mlflow.set_tracking_uri(stack.uri)
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml")
    assert "seed_everything: 42" in text
    (model,) = stack.client.search_logged_models([run.info.experiment_id])
    assert model.status == "READY" and model.source_run_id == run.info.run_id
    import torch

    assert mlflow.pytorch.load_model(f"models:/{model.model_id}")(torch.zeros(3, 3, 16, 16)).shape == (3, 10)


def test_the_run_is_in_postgres_and_the_model_in_minio(stack: Stack, trained: str) -> None:
    """Guards: a stack that runs on some file inside the MLflow container and loses it with the container."""
    (run,) = stack.runs("digits")
    rows = stack.inside(
        "postgres", f"psql -U mlflow -d mlflow -tAc \"select status from runs where run_uuid='{run.info.run_id}'\""
    )
    assert rows.strip() == "FINISHED"
    objects = stack.inside(
        "mlflow", S3_CLIENT + "print([o['Key'] for o in s3.list_objects_v2(Bucket='mlflow')['Contents']])"
    )
    assert "model.pt2" in objects and "config.yaml" in objects


S3_CLIENT = """
import boto3, pathlib
read = lambda name: pathlib.Path('/run/secrets', name).read_text()
def client(user, password):
    return boto3.client('s3', endpoint_url='http://minio:9000', region_name='us-east-1',
                        aws_access_key_id=user, aws_secret_access_key=password)
s3 = client(read('access_key'), read('secret_key'))
"""


def test_only_two_ports_are_published_and_on_loopback(stack: Stack, trained: str) -> None:
    """Guards: Postgres or the S3 API on the host, or a UI on every interface of it."""
    published = {
        (service, bind["HostIp"], int(bind["HostPort"]))
        for service in (*SERVERS, "trainer")
        for binds in (stack.inspect(service)["HostConfig"]["PortBindings"] or {}).values()
        for bind in binds
    }
    assert published == {("mlflow", "127.0.0.1", stack.ui_port), ("minio", "127.0.0.1", stack.console_port)}
    for port in (5432, 9000):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is open on the host"


def test_the_trainer_cannot_reach_postgres_or_minio(stack: Stack, trained: str) -> None:
    """Guards: a trainer on the backend network; by name and by address."""
    targets = [("postgres", 5432), ("minio", 9000), ("minio", 9001)]
    for service, port in list(targets):
        for network in stack.inspect(service)["NetworkSettings"]["Networks"].values():
            targets.append((network["IPAddress"], port))
    code = f"""
import socket
for host, port in [('mlflow', 8000), *{targets!r}]:
    try:
        socket.create_connection((host, port), timeout=2).close()
        print('reached', host, port)
    except OSError:
        pass
"""
    done = stack.in_trainer(code)
    assert [line for line in done.stdout.splitlines() if "reached" in line] == ["reached mlflow 8000"], done.stdout


def test_default_credentials_are_refused(stack: Stack, trained: str) -> None:
    """Guards: MinIO's well-known login, and a database that trusts the network."""
    guess = S3_CLIENT + "print(s3.list_buckets()['ResponseMetadata']['HTTPStatusCode'])\n"
    for user, password in (("minioadmin", "minioadmin"), ("minio", "minio123"), ("admin", "password")):
        guess += f"""
try:
    client({user!r}, {password!r}).list_buckets(); print('accepted')
except Exception as error:
    print('refused', type(error).__name__)
"""
    answers = stack.inside("mlflow", guess).split("\n")
    assert answers[0] == "200" and "accepted" not in answers and sum("refused" in line for line in answers) == 3
    guess = """
import psycopg2
for password in ('', 'mlflow', 'postgres', 'password'):
    try:
        psycopg2.connect(host='postgres', user='mlflow', dbname='mlflow', password=password); print('accepted')
    except psycopg2.OperationalError as error:
        print('refused')
"""
    assert stack.inside("mlflow", guess).split() == ["refused"] * 4


def test_the_console_takes_the_printed_login(stack: Stack, trained: str) -> None:
    """Guards: `make credentials` that prints something else than what the console wants."""
    printed = subprocess.run(
        ["make", "--silent", "credentials"],
        cwd=REPOSITORY,
        env=stack.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed[0] == "user" and printed[2] == "password"

    def log_in(user: str, password: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{stack.console_port}/api/v1/login",
            data=json.dumps({"accessKey": user, "secretKey": password}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            return urllib.request.urlopen(request, timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    assert log_in(printed[1], printed[3]) == 204
    assert log_in("minioadmin", "minioadmin") >= 400


def test_no_secret_leaks(stack: Stack, trained: str) -> None:
    """Guards: a credential in an environment, a command line, a log, an image layer or the repository."""
    secrets = stack.inside(
        "minio",
        "cat /run/secrets/access_key; echo; cat /run/secrets/secret_key; echo; cat /run/secrets/postgres_password",
    ).split()
    assert len(secrets) == 3 and all(len(secret) >= 40 for secret in secrets)
    places = {"logs": stack.must("logs", "--no-color")}
    for service in (*SERVERS, "trainer", "secrets"):
        places[f"inspect {service}"] = json.dumps(stack.inspect(service))
    for image in (f"{stack.project}-mlflow", f"{stack.project}-trainer"):
        history = ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image]
        places[f"history {image}"] = subprocess.run(history, capture_output=True, text=True, check=True).stdout
    for secret in secrets:
        assert [place for place, text in places.items() if secret in text] == []
        found = subprocess.run(["git", "grep", "-qF", secret], cwd=REPOSITORY)
        assert found.returncode == 1, "in the repository"
    mounts = {mount["Destination"] for mount in stack.inspect("trainer")["Mounts"]}
    assert "/run/secrets" not in mounts
    (repository,) = (mount for mount in stack.inspect("trainer")["Mounts"] if mount["Destination"] == "/repo")
    assert not repository["RW"], "the repository is mounted read-only"


@pytest.mark.parametrize("service", ["mlflow", "trainer"])
def test_our_containers_can_do_little(stack: Stack, trained: str, service: str) -> None:
    """Guards: root, a writable root file system, capabilities."""
    seen = stack.inspect(service)
    assert seen["Config"]["User"] == "10001:10001"
    assert seen["HostConfig"]["ReadonlyRootfs"] and seen["HostConfig"]["CapDrop"] == ["ALL"]
    assert not seen["HostConfig"]["CapAdd"] and "no-new-privileges:true" in seen["HostConfig"]["SecurityOpt"]


def answer_to(stack: Stack, host: str) -> int:
    request = urllib.request.Request(f"{stack.uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default")
    request.add_header("Host", host)
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_ui_answers_through_a_tunnel_and_to_nobody_elses_name(stack: Stack, trained: str) -> None:
    """Guards: 403 for a user behind an ssh tunnel; an answer to a web page that rebinds its name."""
    assert answer_to(stack, f"localhost:{stack.ui_port}") == answer_to(stack, "localhost:18000") == 200
    assert answer_to(stack, "127.0.0.1:9999") == 200
    assert answer_to(stack, "evil.example.org") == 403


def test_a_second_up_changes_nothing(stack: Stack, trained: str) -> None:
    """Guards: new credentials, or servers that restart, with every `up`."""
    before = {service: stack.container(service) for service in SERVERS}
    login = stack.inside("minio", "cat /run/secrets/secret_key")
    stack.must("up", "--detach", "mlflow")
    assert {service: stack.container(service) for service in SERVERS} == before
    assert stack.inside("minio", "cat /run/secrets/secret_key") == login


def test_down_and_up_keep_every_run_and_artifact(stack: Stack, trained: str) -> None:
    """Guards: data in a container instead of a volume. Also that a host name may be added."""
    before = {run.info.run_id: run.data.metrics for run in stack.runs("digits")}
    stack.must("down", "--timeout", "30")
    stack.must("up", "--detach", "--wait", "mlflow", ALLOWED_HOSTS="lab.example.org")
    assert {run.info.run_id: run.data.metrics for run in stack.runs("digits")} == before
    (run,) = stack.runs("digits")
    mlflow.set_tracking_uri(stack.uri)
    assert "seed_everything: 42" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml")
    assert answer_to(stack, f"lab.example.org:{stack.ui_port}") == 200
    assert answer_to(stack, "evil.example.org") == 403
