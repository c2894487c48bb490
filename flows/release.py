"""The flow `release`: from a revision to the last environment."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from prefect_cd import tasks
from prefect_cd.environment.record import Decision
from prefect_cd.errors import ContentChanged
from prefect_cd.flows import served
from prefect_cd.flows.outcome import returning_state
from prefect_cd.flows.recover import start_recovery
from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release.model import Release
from prefect_cd.tasks import Target
from prefect_cd.tasks.changes import refuse_blocked
from prefect_cd.tasks.deployment import deployed_by_this_run, repair
from prefect_cd.tasks.preparation import prepare
from prefect_cd.tasks.runs import show_release, supersede_older
from prefect_cd.tasks.stage import log
from prefect_cd.tasks.veto import refuse_vetoed


def _run_name() -> str:
    if flow_run.run_count and any(one.startswith("commit:") for one in flow_run.tags):  # resumed: it has a better name
        return str(flow_run.name)
    return f"release {flow_run.parameters.get('revision') or 'the branch'}"


@flow(
    name="release",
    flow_run_name=_run_name,
    persist_result=True,
    on_crashed=[start_recovery],
    on_cancellation=[start_recovery],
    on_failure=[start_recovery],
)
def release(revision: str = "", *, again: bool = False) -> State[Any]:
    """Bring a revision through every environment of the served pipeline.

    Args:
        revision: branch, tag or SHA; empty: the branch of the pipeline file.
        again: bring it in even where the same release was rolled back or withdrawn. For users; triggers do not say so.
    """
    with returning_state() as ending:
        pipeline, file = served.pipeline()
        revision = revision or pipeline.source.branch
        ending.begin(pipeline, str(flow_run.name or f"release {revision}"))
        prepared = prepare(pipeline, revision, file)
        candidate = tasks.render(pipeline, prepared.commit, prepared.image, prepared.checked)
        evidence = list(prepared.evidence)
        for environment in pipeline.environments:
            show_release(pipeline, prepared.commit, environment.name)
            evidence += promote(pipeline, Target.of(pipeline, environment.name), candidate, evidence, again=again)
        last = pipeline.environments[-1].name
        ending.state = Completed(message=f"{candidate.application} {candidate.id} runs in {last}")
    return ending.state


def promote(
    pipeline: Pipeline, target: Target, candidate: Release, evidence: list[Evidence], *, again: bool = False
) -> tuple[Evidence, ...]:
    """One environment: ask for an approval where the pipeline wants one, and deploy."""
    if done := deployed_by_this_run(target, candidate):  # before this run waited for an approval
        return done.evidence
    refuse_vetoed(target, candidate, again=again)  # before a user is asked
    note = ""
    while True:
        decision = ask(pipeline, target, candidate, evidence, note) if target.environment.approval else None
        try:
            return tasks.deploy(pipeline, target, candidate, decision, again=again).evidence
        except ContentChanged as changed:
            note = changed.reason
            log().warning("%s", note)


def ask(pipeline: Pipeline, target: Target, candidate: Release, evidence: list[Evidence], note: str) -> Decision | None:
    """The decision of an approver; None when the environment runs the candidate already.

    What an interrupted rollout left is repaired first, so that the form describes a whole environment.
    """
    repair(pipeline, target)
    planned = tasks.plan(target, candidate)
    if planned.already_runs:
        return None
    refuse_blocked(pipeline, candidate, planned)
    supersede_older(pipeline, candidate.commit)
    return tasks.approve(pipeline, candidate, planned, tested=evidence, note=note)
