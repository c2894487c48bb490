"""Whether Prefect's server asks for credentials: an approval is worth nothing where everyone may answer the form."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    temporary_settings,
)

from prefect_cd.errors import Errored, Invalid
from prefect_cd.pipeline.models import Pipeline


def require_authentication(pipelines: Sequence[Pipeline]) -> None:
    """Refuse pipelines with an approval on a server that answers without credentials, unless their file allows it.

    Raises:
        Invalid: a pipeline with an approval does not allow such a server.
        Errored: the server did not say.
    """
    refusing = [
        pipeline.application
        for pipeline in pipelines
        if pipeline.security.unauthenticated_server == "refuse"
        and any(environment.approval for environment in pipeline.environments)
    ]
    if refusing and _answers_without_credentials():
        raise Invalid(
            "Prefect's server answers without credentials: everyone who reaches it, and so every program of a commit, "
            f"could approve releases of {', '.join(refusing)}",
            where=str(PREFECT_API_URL.value()),
            hint="start the server with PREFECT_SERVER_API_AUTH_STRING=NAME:PASSWORD, and serve with "
            "PREFECT_API_AUTH_STRING=NAME:PASSWORD; or, to try things out, write `security: {unauthenticated_server: "
            "allow}` into the pipeline file",
        )


def _answers_without_credentials() -> bool:
    nothing: dict[Any, Any] = {
        PREFECT_API_KEY: None,
        PREFECT_API_AUTH_STRING: None,
        PREFECT_CLIENT_CUSTOM_HEADERS: {},
    }
    try:
        with temporary_settings(nothing), get_client(sync_client=True) as client:
            client.count_flow_runs()
    except PrefectHTTPStatusError as error:
        if error.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _no_answer(f"answers {error.response.status_code}") from error
        return False
    except httpx.HTTPError as error:
        raise _no_answer(f"does not answer: {error or type(error).__name__}") from error
    except ValueError:  # the page of a proxy that wants a login
        return False
    return True


def _no_answer(what: str) -> Errored:
    return Errored(
        f"Prefect's server {what}", where=str(PREFECT_API_URL.value()), hint="start it, or correct PREFECT_API_URL"
    )
