"""Which of an MLflow server's answers no later try can change."""

from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

_FINAL = {
    ErrorCode.Name(code)
    for code in (
        BAD_REQUEST,
        INVALID_PARAMETER_VALUE,
        INVALID_STATE,
        RESOURCE_ALREADY_EXISTS,
        RESOURCE_DOES_NOT_EXIST,
    )
}


def is_final(error: MlflowException) -> bool:
    """Whether the server has refused for good; anything else (no connection, 5xx, 429) is worth another try."""
    return error.error_code in _FINAL


def is_missing(error: MlflowException) -> bool:
    """Whether what was asked for is not there."""
    return error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)


def in_one_line(error: Exception) -> str:
    """How the server has not taken something, short enough for a terminal."""
    message = " ".join(str(error).split())
    if isinstance(error, RestException):
        return f"answers with an error ({message[:160]})"
    # urllib3 hides the reason behind the whole request.
    reason = message.rsplit(":", 1)[-1] if "Max retries exceeded" in message else message
    return f"does not answer ({reason.strip(' )')[:120]})"
