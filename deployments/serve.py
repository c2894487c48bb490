"""Serve pipelines: register their deployments with the Prefect server and execute their runs."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect import serve as prefect_serve
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType

from prefect_cd.deployments import run_starter
from prefect_cd.deployments.authentication import require_authentication
from prefect_cd.deployments.background import BackgroundJobs
from prefect_cd.errors import Invalid, InvalidPipeline
from prefect_cd.flows.recover import recover
from prefect_cd.flows.release import release
from prefect_cd.flows.rollback import rollback
from prefect_cd.flows.served import PIPELINES
from prefect_cd.pipeline.describe import describe
from prefect_cd.pipeline.load import load
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.process import protect_this_process
from prefect_cd.tasks import environments
from prefect_cd.tasks.choices import PREVIOUS
from prefect_cd.tasks.markdown_text import fenced, link

RECOVER_EVERY = timedelta(minutes=10)
_POLL_SECONDS = 0.5
_PRIVATE = 0o077  # umask: what runs write, such as Prefect's results, is for this user only
_RUNS_AT_ONCE = 10
_LOGGERS = "PREFECT_LOGGING_EXTRA_LOGGERS"  # Prefect shows the lines of these loggers in the log of a run


def serve(files: Sequence[Path]) -> None:
    """Register `release`, `rollback` and `recover` of each pipeline, and execute their runs until interrupted.

    Args:
        files: pipeline files, one for each application.

    Raises:
        InvalidPipeline: a file has mistakes, or two files describe the same application.
        Invalid: no Prefect server is configured, or everyone who reaches it could approve.
        Errored: Prefect's server does not answer.
    """
    protect_this_process()  # our environment variables may hold the credentials of Prefect's server
    pipelines = _load(files)
    if not get_current_settings().api.url:
        raise Invalid(
            "no Prefect server is configured",
            where="PREFECT_API_URL",
            hint="start one with `prefect server start`, then `prefect config set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api`",
        )
    require_authentication(pipelines)
    # The processes of runs inherit it. A run must not choose its pipeline file by a parameter: the operator does here.
    os.environ[PIPELINES] = os.pathsep.join(str(path.resolve()) for path in files)
    loggers = [name for name in os.environ.get(_LOGGERS, "").split(",") if name]
    os.environ[_LOGGERS] = ",".join([*loggers, "prefect_cd"])
    os.umask(_PRIVATE)  # inherited, too
    deployments = [deployment for pipeline in pipelines for deployment in deployments_of(pipeline)]
    run_starter.install()
    with BackgroundJobs([pipeline.application for pipeline in pipelines]):
        # Deployments stay active when `serve` stops: runs that are started meanwhile wait for its next start.
        prefect_serve(*deployments, pause_on_shutdown=False, limit=_RUNS_AT_ONCE, query_seconds=_POLL_SECONDS)


def deployments_of(pipeline: Pipeline) -> list[RunnerDeployment]:
    """The deployments release, rollback and recover of a pipeline; each has the name of the application."""
    name, tags = pipeline.application, [f"application:{pipeline.application}"]
    return [
        _deployment(
            release,
            name,
            description=f"{link_to_environments(name)}\n\n{fenced(describe(pipeline))}",
            parameters={"revision": pipeline.source.branch},
            tags=tags,
        ),
        _deployment(
            rollback,
            name,
            description=f"Returns an environment of {name} to its previous known-good release, or to a named one. "
            f"{link_to_environments(name)}",
            parameters={"environment": pipeline.environments[-1].name, "to": PREVIOUS},
            tags=tags,
            enforce_parameter_schema=False,  # its choices may be outdated; the flow checks what it gets
        ),
        _deployment(
            recover,
            name,
            description=f"Finds rollouts in the environments of {name} whose process died, and rolls them back. "
            f"{link_to_environments(name)}",
            interval=RECOVER_EVERY,
            tags=tags,
        ),
    ]


def link_to_environments(application: str) -> str:
    """In the description of each deployment: what runs where is one click away; empty where Prefect has no UI."""
    return link("What runs where", address) if (address := environments.address(application)) else ""


def _deployment(flow: "Flow[..., Any]", name: str, **options: Any) -> RunnerDeployment:  # noqa: ANN401
    """Make a deployment whose runs import the flow by its module path, under the same name as everywhere else."""
    deployment = flow.to_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH, **options)
    # Prefect's type says that it may be a coroutine, which it is inside an event loop only.
    if not isinstance(deployment, RunnerDeployment):
        raise TypeError("deployments cannot be made inside an event loop")
    return deployment


def _load(files: Sequence[Path]) -> list[Pipeline]:
    pipelines = [load(path) for path in files]
    names = [pipeline.application for pipeline in pipelines]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InvalidPipeline(
            f"several files describe {', '.join(duplicates)}", hint="serve one pipeline file for each application"
        )
    return pipelines
