"""Starts the MLflow server of the stack: waits for its backends, prepares them, then becomes `mlflow server`.

It reads the credentials from /run/secrets and hands them on in the environment of the server's process: they appear
neither on a command line, nor in `docker inspect`, nor in a log.

    ALLOWED_HOSTS  names or addresses, with or without port, that users type for this machine (comma-separated)
    BIND_ADDRESS   the address on which the UI is published
    UI_PORT        the port on which the UI is published
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import boto3
import botocore.config
import botocore.exceptions
import sqlalchemy
import sqlalchemy.exc

SECRETS = Path("/run/secrets")
POSTGRES = "postgres:5432"
DATABASE = "mlflow"
S3 = "http://minio:9000"
BUCKET = "mlflow"
PORT = 8000
PATIENCE = 60  # seconds that a backend may take to answer


def main() -> None:
    hosts, origins = allowed(os.environ.get("ALLOWED_HOSTS", ""))
    # The driver is named, because SQLAlchemy's choice for plain `postgresql` has changed between its releases.
    uri = f"postgresql+psycopg2://{DATABASE}:{secret('postgres_password')}@{POSTGRES}/{DATABASE}"
    os.environ["AWS_ACCESS_KEY_ID"] = secret("access_key")
    os.environ["AWS_SECRET_ACCESS_KEY"] = secret("secret_key")

    prepare_database(uri)
    prepare_bucket()

    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    os.environ["MLFLOW_S3_ENDPOINT_URL"] = S3
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(hosts)
    os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(origins)
    say(f"answering to {', '.join(hosts)}")
    # proxied-s3 is plugin/proxied_s3.py: with plain s3, clients would be sent to MinIO, which they cannot reach.
    command = ["mlflow", "server", "--host", "0.0.0.0", "--port", str(PORT), "--workers", "2"]
    os.execvp("mlflow", [*command, "--serve-artifacts", "--artifacts-destination", f"proxied-s3://{BUCKET}"])


def allowed(names: str) -> tuple[list[str], list[str]]:
    """Returns the Host headers and the browser origins that the server accepts.

    A web page that makes a user's browser talk to this server (DNS rebinding) comes with its own name in both. MLflow
    compares them with the port, literally. localhost may have any port, since users come through ssh tunnels that end
    on ports of their choice, and no page can take that name; as an origin MLflow always accepts it.
    """
    hosts = ["localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*", "[::1]", "[[]::1]:*", "mlflow", f"mlflow:{PORT}"]
    origins = [f"http://mlflow:{PORT}"]
    ui_port = os.environ.get("UI_PORT", str(PORT))
    bind_address = os.environ.get("BIND_ADDRESS", "")
    if bind_address not in ("", "0.0.0.0", "127.0.0.1", "::", "[::]", "::1", "[::1]"):
        names += f",{bind_address}"
    for name in filter(None, (name.strip().lower() for name in names.split(","))):
        if "*" in name or "/" in name:
            fail(f"ALLOWED_HOSTS: {name!r} is not the name of a host; list each name or address that users type")
        # An IPv6 address has colons of its own, and stands in brackets in a URL.
        if name.count(":") > 1 and not name.startswith("["):
            name = f"[{name}]"
        host, _, port = name.rpartition(":") if ":" in name.rpartition("]")[2] else (name, "", "")
        for form in dict.fromkeys((host, f"{host}:{port or ui_port}")):
            hosts.append(form)
            origins += [f"http://{form}", f"https://{form}"]
    return hosts, origins


def prepare_database(uri: str) -> None:
    """Waits for Postgres and brings the schema to this MLflow's."""
    # MLflow takes seconds to import; a mistake in the settings should show before that.
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db import utils as schema

    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": 5})

    def connect() -> str | None:
        try:
            engine.connect().close()
        except sqlalchemy.exc.OperationalError as error:
            reason = str(error.orig).strip().splitlines()[-1]
            if "password authentication failed" in reason:
                fail(f"Postgres refuses the password in {SECRETS}: the volumes secrets and postgres belong together")
            return reason
        return None

    wait_for(f"Postgres at {POSTGRES}", connect)
    if schema._is_empty_database(engine):
        say("a new database: creating its tables")
        schema._initialize_tables(engine)
    else:
        found, wanted = schema._get_schema_version(engine), schema._get_latest_schema_revision()
        if found != wanted:
            try:
                ScriptDirectory.from_config(schema._get_alembic_config("")).get_revision(found)
            except CommandError:
                fail(f"the database was written by a newer MLflow (schema {found}; this one knows up to {wanted})")
            say(f"the database is of an older MLflow: upgrading its schema from {found} to {wanted}, may take minutes")
            schema._upgrade_db(engine)
            say("the schema is upgraded")
    engine.dispose()


def prepare_bucket() -> None:
    """Waits for MinIO and creates the bucket if it is absent."""
    config = botocore.config.Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 0})
    client = boto3.client("s3", endpoint_url=S3, config=config)

    def connect() -> str | None:
        try:
            client.head_bucket(Bucket=BUCKET)
        except botocore.exceptions.ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 403:
                fail(f"MinIO refuses the key in {SECRETS}: the volumes secrets and minio belong together")
            if status != 404:
                return str(error)
            say(f"creating the bucket {BUCKET}")
            client.create_bucket(Bucket=BUCKET)
        except botocore.exceptions.BotoCoreError as error:
            return str(error)
        return None

    wait_for(f"MinIO at {S3}", connect)


def wait_for(name: str, connect: Callable[[], str | None]) -> None:
    """Calls `connect` until it returns no reason to wait longer, or fails with the last reason."""
    deadline = time.monotonic() + PATIENCE
    announced = False
    while reason := connect():
        if time.monotonic() > deadline:
            fail(f"{name} did not answer within {PATIENCE} s: {reason}")
        if not announced:
            say(f"waiting for {name}: {reason}")
            announced = True
        time.sleep(1)


def secret(name: str) -> str:
    try:
        return (SECRETS / name).read_text().strip()
    except OSError as error:
        fail(f"cannot read {SECRETS / name} ({error.strerror}): the service secrets writes it on the first start")


def say(text: str) -> None:
    print(f"mlflow-server: {text}", flush=True)


def fail(text: str) -> NoReturn:
    sys.exit(f"mlflow-server: error: {text}")


if __name__ == "__main__":
    main()
