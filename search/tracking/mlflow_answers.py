"""Recognises MLflow's own answers: only these count, anything else is an outage."""

import re
from typing import Any
from urllib.parse import urlsplit

from search.tracking.events import Unsendable
from search.tracking.spool import in_short

_FINAL_CODES = {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
"""MLflow's own error codes for a faulty request. `only_mlflow_answers` lets no other errors through."""

_ANSWERS = {
    r"experiments/get-by-name": {"experiment"},
    r"experiments/create": {"experiment_id"},
    r"experiments/(restore|set-experiment-tag)": set[str](),
    r"runs/create": {"run"},
    r"runs/update": {"run_info"},
    r"runs/(log-batch|set-tag|log-inputs|outputs)": set[str](),
    r"logged-models(/m-\w+)?": {"model"},
}
"""What the answer to a request must contain, by the end of the request's path."""


def only_mlflow_answers(response: Any, *_: object, **__: object) -> None:
    """A hook for `requests` that lets only MLflow's own answers through, including its errors.

    The MLflow client accepts much else as its server's answer: 400 with HTML is "BAD_REQUEST"; a login page to which a
    PUT was redirected counts as a successful upload; an empty answer is one without fields.

    Raises:
        ConnectionError: something else answered; MLflow's client turns this into an MlflowException, an INTERNAL_ERROR.
    """
    where = urlsplit(response.request.url).path
    api = re.search(r"/api/[23]\.0/(mlflow|mlflow-artifacts)/(.+)", where)
    asked = response.request.method
    if api is None or (api[1] == "mlflow-artifacts" and asked == "GET"):
        return
    if response.is_redirect:
        if api[0] in response.headers["Location"]:  # to https, or to another name of the same server
            return
    elif response.status_code == 200:
        try:
            said = response.json()
        except ValueError:
            said = None
        if api[1] == "mlflow-artifacts" and asked == "PUT":
            is_right = (
                not response.content or said == {}
            )  # depending on the version; `_log_files` checks that it is there
        else:
            fields = next((names for path, names in _ANSWERS.items() if re.fullmatch(path, api[2])), None)
            is_right = isinstance(said, dict) and (fields is None or set(said) == fields)
        if is_right:
            return
    elif _error_code(response):
        return
    raise ConnectionError(
        f"{asked} {where} was answered with status {response.status_code} by something that is not MLflow: "
        f"{in_short(response.text) or 'nothing'}"
    )


def _error_code(response: Any) -> str:
    """MLflow's code of an error; empty if the answer is not one of MLflow's errors."""
    from mlflow.protos.databricks_pb2 import ErrorCode

    try:
        said = response.json()
    except ValueError:
        return ""
    if not isinstance(said, dict) or not isinstance(said.get("message"), str):
        return ""
    code = str(said.get("error_code"))
    return code if code in ErrorCode.keys() else ""  # noqa: SIM118


def hear_only_mlflow() -> None:
    """Sets the hook in the requests session of MLflow's client, which has no public way to do so."""
    from mlflow import environment_variables as settings
    from mlflow.utils import request_utils

    session = request_utils._get_request_session(
        settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
        settings.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
        settings.MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.get(),
        request_utils._TRANSIENT_FAILURE_RESPONSE_CODES,
        True,
        settings.MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER.get(),
    )
    if only_mlflow_answers not in session.hooks["response"]:
        session.hooks["response"].append(only_mlflow_answers)


def is_before_3(tracking_uri: str) -> bool:
    """Whether a server reports version 1 or 2."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(tracking_uri), "/version", "GET")
    return answer.status_code == 200 and re.fullmatch(r"[12]\.[\w.]{1,30}", answer.text.strip()) is not None


def is_final(error: Exception) -> bool:
    """Whether sending the same event again is pointless, because of MLflow's answer or the event itself. Anything else
    is an outage."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _FINAL_CODES
    response = getattr(error, "response", None)
    if response is not None:  # from an artifact upload
        return _error_code(response) in _FINAL_CODES
    if isinstance(error, OSError):
        return False
    # the event's content has a type that we never send; not ValueError alone, which a strange answer could raise
    return isinstance(error, Unsendable | AttributeError | KeyError | TypeError | ValueError)
