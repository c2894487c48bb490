"""Serve pipelines: register their deployments with the Prefect server, and run what is started."""

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

from prefect_cd.deployments import forkserver
from prefect_cd.deployments.housekeeping import Housekeeping
from prefect_cd.errors import Invalid, InvalidPipeline
from prefect_cd.flows.recover import recover
from prefect_cd.flows.release import release
from prefect_cd.flows.rollback import rollback
from prefect_cd.flows.served import PIPELINES
from prefect_cd.pipeline.describe import describe
from prefect_cd.pipeline.load import load
from prefect_cd.pipeline.models import Pipeline

_RECOVER_EVERY = timedelta(minutes=10)
_LOOK_EVERY_SECONDS = 0.5
_RUNS_AT_ONCE = 10
_LOGGERS = "PREFECT_LOGGING_EXTRA_LOGGERS"  # whose lines appear in a run's log: the core says there what it waits for


def serve(files: Sequence[Path]) -> None:
    """Register `release`, `rollback` and `recover` of each pipeline and run them until interrupted.

    Args:
        files: pipeline files; each has an application of its own.

    Raises:
        InvalidPipeline: a file has mistakes, or two have one application.
        Invalid: there is no Prefect server to register with.
    """
    pipelines = _load(files)
    if not get_current_settings().api.url:
        raise Invalid(
            "no Prefect server to register with",
            where="PREFECT_API_URL",
            hint="start one with `prefect server start`, then `prefect config set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api`",
        )
    # flow processes inherit it: the operator's files decide, not a parameter
    os.environ[PIPELINES] = os.pathsep.join(str(path.resolve()) for path in files)
    loggers = [name for name in os.environ.get(_LOGGERS, "").split(",") if name]
    os.environ[_LOGGERS] = ",".join([*loggers, "prefect_cd"])
    deployments = [deployment for each in pipelines for deployment in deployments_of(each)]
    forkserver.install()
    with Housekeeping([each.application for each in pipelines]):
        prefect_serve(*deployments, pause_on_shutdown=False, limit=_RUNS_AT_ONCE, query_seconds=_LOOK_EVERY_SECONDS)


def deployments_of(pipeline: Pipeline) -> list[RunnerDeployment]:
    """The three deployments of a pipeline, named by its application."""
    name, tags = pipeline.application, [f"application:{pipeline.application}"]
    last = pipeline.environments[-1].name
    return [
        _deployment(
            release,
            name,
            description=f"```\n{describe(pipeline)}\n```",
            parameters={"revision": pipeline.source.branch},
            tags=tags,
        ),
        _deployment(
            rollback,
            name,
            description=f"Brings an environment of {name} back to its previous known-good, or to a named release.",
            parameters={"environment": last, "to": ""},
            tags=tags,
        ),
        _deployment(
            recover,
            name,
            description=f"Finds what a dead process left half done in an environment of {name}, and puts it right.",
            interval=_RECOVER_EVERY,
            tags=tags,
        ),
    ]


def _deployment(flow: "Flow[..., Any]", name: str, **options: Any) -> RunnerDeployment:  # noqa: ANN401
    """By module path, so that a run imports the flow under its own name; blocking, which the stubs do not know."""
    made = flow.to_deployment(name, entrypoint_type=EntrypointType.MODULE_PATH, **options)
    if not isinstance(made, RunnerDeployment):
        raise TypeError("deployments are made outside of an event loop")
    return made


def _load(files: Sequence[Path]) -> list[Pipeline]:
    pipelines = [load(path) for path in files]
    names = [each.application for each in pipelines]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidPipeline(
            f"several files describe {', '.join(twice)}", hint="serve one pipeline file for each application"
        )
    return pipelines
