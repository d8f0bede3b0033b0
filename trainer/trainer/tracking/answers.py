"""Which of an MLflow server's answers no later try can change."""

import re

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


_ANSWER = re.compile(r"too many (\d+) error responses")
"""urllib3's word for an answer that is an error, where it was to be tried again."""
OF_THE_DATABASE = "sqlalche.me/e/"
"""In the text of each error of SQLAlchemy's (https://docs.sqlalchemy.org/en/20/errors.html)."""


def is_final(error: MlflowException) -> bool:
    """Whether the server has refused for good; anything else (no connection, 5xx, 429) is worth another try.

    So is what its database has said: MLflow passes a database that is read-only for a while, say, on as BAD_REQUEST
    (mlflow.store.db.utils, 3.17).
    """
    return error.error_code in _FINAL and OF_THE_DATABASE not in str(error.message)


def may_be_of_what_was_asked(error: MlflowException) -> bool:
    """Whether a later try may help, or what was asked may be at fault itself: the server, or its database, fails at it.

    Not so where the server is away, overloaded or started (429, 502, 503, 504), or does not know who asks (401, 403).
    """
    answer = _ANSWER.search(str(error))
    return answer[1] == "500" if answer else OF_THE_DATABASE in str(error.message)


def is_missing(error: MlflowException) -> bool:
    """Whether what was asked for is not there."""
    return error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)


END = " )\"'."
"""What urllib3's messages end with behind the reason."""


def in_one_line(error: Exception) -> str:
    """How the server has not taken something, short enough for a terminal."""
    message = " ".join(str(error).split())
    if isinstance(error, RestException):
        return f"answers with an error ({message[:160]})"
    if answer := _ANSWER.search(message):
        return f"answers with an error (HTTP {answer[1]})"
    # urllib3 hides the reason behind the whole request.
    reason = message.rsplit(":", 1)[-1] if "Max retries exceeded" in message else message
    return f"does not answer ({reason.strip(END)[:120]})"
