"""A team's own flow, composed of the stages of `prefect_cd.tasks` in plain Prefect.

This team has one environment, wants a person's word before it is changed, and no more than that:

    python examples/own_flow.py pipeline.yaml staging main

The signatures keep the order: nothing is applied without a plan and the lock, no gate runs without a complete rollout.
"""

import sys
from pathlib import Path

from prefect import flow

from prefect_cd import tasks
from prefect_cd.environment.lease import Lock
from prefect_cd.environment.records import Record, State
from prefect_cd.errors import DeliveryError
from prefect_cd.pipeline.load import load
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.tasks import Plan, Target


@flow
def deliver(file: Path, environment: str, revision: str) -> Record:
    """Build, test and deploy one revision; when it fails, bring back what ran before."""
    pipeline = load(file)
    target = Target.of(pipeline, environment)
    commit = tasks.resolve(pipeline, revision)
    image = tasks.build(pipeline, commit)
    tested = [tasks.run_check(pipeline, commit, image, check) for check in pipeline.checks]
    release = tasks.render(pipeline, commit, image)
    decision = tasks.approve(pipeline, release, tasks.plan(target, release), tested=tested)

    with tasks.hold_lock(target) as lock:
        planned = tasks.plan(target, release)
        record = tasks.record_start(planned, lock, decision)  # refuses when the plan is no longer what was approved
        try:
            return bring(pipeline, planned, lock, record, State.KNOWN_GOOD)
        except DeliveryError:
            if planned.running:
                bring(pipeline, tasks.plan(target, planned.running), lock, record, State.ROLLED_BACK)
            raise


def bring(pipeline: Pipeline, planned: Plan, lock: Lock, record: Record, state: State) -> Record:
    """Bring a version into its environment, prove that it works there, and write down what became of the record."""
    applied = tasks.apply(planned, lock)
    report = tasks.watch_rollout(applied)
    tasks.prune(applied, lock)
    gates = planned.target.environment.gates
    evidence = [tasks.run_gate(pipeline.source, applied, report, gate) for gate in gates]
    tasks.watch_afterwards(applied)
    return tasks.record_outcome(planned.target, record, state, lock, evidence=evidence)


if __name__ == "__main__":
    deliver(Path(sys.argv[1]), *sys.argv[2:])
