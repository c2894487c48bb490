"""Continuous deployment to Kubernetes as Prefect flows.

The stages of a release, for flows of your own; `examples/own_flow.py` composes them::

    resolve → preflight → build → render → run_check → approve → deploy, and rollback

Names are loaded when they are first used: importing Prefect takes seconds, which a program that needs only
`load_pipeline` does not pay.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_cd.errors import DeliveryError
    from prefect_cd.gates.evidence import Evidence
    from prefect_cd.pipeline.load import load as load_pipeline
    from prefect_cd.pipeline.models import Pipeline
    from prefect_cd.release.model import Release
    from prefect_cd.tasks.approval import approve
    from prefect_cd.tasks.changes import plan
    from prefect_cd.tasks.check import run_check
    from prefect_cd.tasks.deployment import deploy, rollback
    from prefect_cd.tasks.image import build
    from prefect_cd.tasks.preconditions import preflight
    from prefect_cd.tasks.release import render
    from prefect_cd.tasks.source import resolve
    from prefect_cd.tasks.target import Target

__all__ = [
    "DeliveryError",
    "Evidence",
    "Pipeline",
    "Release",
    "Target",
    "approve",
    "build",
    "deploy",
    "load_pipeline",
    "plan",
    "preflight",
    "render",
    "resolve",
    "rollback",
    "run_check",
]

_HOMES = {
    "DeliveryError": "errors",
    "Evidence": "gates.evidence",
    "Pipeline": "pipeline.models",
    "Release": "release.model",
    "load_pipeline": "pipeline.load",
}
"""Where a name is defined; those that are not listed are stages, in `prefect_cd.tasks`."""


if not TYPE_CHECKING:  # type checkers read the imports above; with this function they would accept any name

    def __getattr__(name: str) -> Any:  # noqa: ANN401
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_HOMES.get(name, 'tasks')}")
        return getattr(module, "load" if name == "load_pipeline" else name)
