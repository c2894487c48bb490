"""The story of a release, from a revision to the last environment."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from prefect_cd import tasks
from prefect_cd.environment.records import Decision
from prefect_cd.errors import ContentChanged
from prefect_cd.flows import served
from prefect_cd.flows.deploy import deploy
from prefect_cd.flows.outcome import returning_state
from prefect_cd.flows.recover import start_recovery
from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import Release
from prefect_cd.tasks.changes import refuse_blocked
from prefect_cd.tasks.runs import supersede_older, tag
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.target import Target


def _run_name() -> str:
    return f"release {flow_run.parameters.get('revision') or 'the branch'}"


@flow(
    name="release",
    flow_run_name=_run_name,
    persist_result=True,
    on_crashed=[start_recovery],
    on_cancellation=[start_recovery],
)
def release(revision: str = "") -> State[Any]:
    """Bring a revision through every environment of the served pipeline.

    Args:
        revision: branch, tag or SHA; empty: the branch of the pipeline file.
    """
    with returning_state() as ending:
        given = served.pipeline()
        pipeline = given.pipeline
        candidate, evidence = prepare(pipeline, revision or pipeline.source.branch, given.file)
        for environment in pipeline.environments:
            tag(f"environment:{environment.name}")
            evidence += promote(pipeline, Target.of(pipeline, environment.name), candidate, evidence)
        last = pipeline.environments[-1].name
        ending.state = Completed(message=f"{candidate.application} {candidate.id} runs in {last}")
    return ending.state


def prepare(pipeline: Pipeline, revision: str, file: Path) -> tuple[Release, list[Evidence]]:
    """Everything before the first environment: source, build, checks, manifests."""
    commit = tasks.resolve(pipeline, revision)
    tag(f"application:{pipeline.application}", f"commit:{commit.short}")
    tasks.compare_pipeline_file(pipeline, commit, file)
    tasks.preflight(pipeline, commit)
    image = tasks.build(pipeline, commit)
    candidate = tasks.render(pipeline, commit, image)  # before any code of the commit runs beside its manifests
    return candidate, [tasks.run_check(pipeline, commit, image, check) for check in pipeline.checks]


def promote(pipeline: Pipeline, target: Target, candidate: Release, evidence: list[Evidence]) -> tuple[Evidence, ...]:
    """One environment: ask where the pipeline wants it, and deploy."""
    note = ""
    while True:
        decision = ask(pipeline, target, candidate, evidence, note) if target.environment.approval else None
        try:
            return deploy(pipeline, target, candidate, decision).evidence
        except ContentChanged as changed:
            note = changed.reason
            log().warning("%s", note)


def ask(pipeline: Pipeline, target: Target, candidate: Release, evidence: list[Evidence], note: str) -> Decision | None:
    """A person's decision; None when the environment runs the candidate already."""
    planned = tasks.plan(target, candidate)
    if planned.is_there:
        return None
    refuse_blocked(pipeline, candidate, planned)
    supersede_older(pipeline, candidate.commit)
    return tasks.approve(pipeline, candidate, planned, tested=evidence, note=note)
