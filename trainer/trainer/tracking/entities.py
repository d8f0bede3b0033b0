"""MLflow's entities as the job makes them up, where they are not the server's or the server is away."""

from mlflow.entities import (
    Experiment,
    LifecycleStage,
    LoggedModel,
    LoggedModelParameter,
    LoggedModelTag,
    Run,
    RunInfo,
    RunStatus,
)

from trainer.tracking import promises
from trainer.tracking.job import RunRecord
from trainer.tracking.schemes import JOB_ARTIFACTS


def experiment(experiment_id: str, name: str) -> Experiment:
    return Experiment(experiment_id, name, JOB_ARTIFACTS, LifecycleStage.ACTIVE)


def own_info(record: RunRecord) -> RunInfo:
    artifact_uri = JOB_ARTIFACTS + record.artifact_uri
    return run_info(record.run_id, record.experiment_id, artifact_uri, record.start_time, record.user_id)


def run_info(run_id: str, experiment_id: str, artifact_uri: str, start_time: int, user_id: str) -> RunInfo:
    return RunInfo(
        run_id=run_id,
        experiment_id=experiment_id,
        user_id=user_id,
        status=RunStatus.to_string(RunStatus.RUNNING),
        start_time=start_time,
        end_time=None,
        lifecycle_stage=LifecycleStage.ACTIVE,
        artifact_uri=artifact_uri,
    )


def through_job(run: Run) -> Run:
    """The same run with its artifacts led through the job: `mlflow-artifacts:` refuses any tracking URI but http."""
    run.info._artifact_uri = JOB_ARTIFACTS + run.info.artifact_uri
    return run


def model_through_job(model: LoggedModel) -> LoggedModel:
    model._artifact_location = JOB_ARTIFACTS + model.artifact_location
    return model


def promised_model(
    experiment_id: str,
    name: str | None,
    source_run_id: str | None,
    tags: list[LoggedModelTag] | None,
    params: list[LoggedModelParameter] | None,
    model_type: str | None,
    now: int,
) -> LoggedModel:
    """A model under an id of the job's own, where the server is away.

    Args:
        now: Milliseconds since the epoch.
    """
    model_id = promises.model_id()
    return LoggedModel(
        experiment_id,
        model_id,
        name or f"model-{model_id[-6:]}",
        promises.uri(),
        now,
        now,
        model_type,
        source_run_id,
        tags={tag.key: tag.value for tag in tags or []},
        params={param.key: param.value for param in params or []},
    )
