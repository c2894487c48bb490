"""A team's own flow, composed of the stages of `prefect_cd` in plain Prefect.

This team has one environment, wants an approval before it is changed, and no more than that:

    python examples/own_flow.py pipeline.yaml staging main

`deploy` holds the lock, refuses a frozen environment, records, rolls out, runs the gates, and restores the known-good
when something fails: a flow that calls it need not know how.
"""

import sys
from pathlib import Path

from prefect import flow

import prefect_cd as cd


@flow
def deliver(file: Path, environment: str, revision: str) -> str:
    """Build, test and deploy one revision; returns the id of the release that runs."""
    pipeline = cd.load_pipeline(file)
    target = cd.Target.of(pipeline, environment)
    commit = cd.resolve(pipeline, revision)
    checked = cd.preflight(pipeline, commit)
    image = cd.build(pipeline, commit, checked)
    release = cd.render(pipeline, commit, image, checked)
    tested = [cd.run_check(pipeline, commit, image, check) for check in pipeline.checks]
    decision = cd.approve(pipeline, release, cd.plan(target, release), tested=tested)
    return cd.deploy(pipeline, target, release, decision).release_id


if __name__ == "__main__":
    deliver(Path(sys.argv[1]), *sys.argv[2:])
