"""A consumer's file that pyright checks in strict mode, outside of this checkout: see `make typed`.

It is never run. A line that must be an error carries an ignore comment; one that is not needed is an error itself.
"""

from pathlib import Path

from typing_extensions import assert_type

import prefect_cd as cd
from prefect_cd.environment.record import Decision
from prefect_cd.release.model import BuiltImage, Commit
from prefect_cd.tasks import Deployed, Plan, Preflight


def stages_return_what_the_next_one_takes(file: Path) -> None:
    pipeline = assert_type(cd.load_pipeline(file), cd.Pipeline)
    target = assert_type(cd.Target.of(pipeline, "staging"), cd.Target)
    commit = assert_type(cd.resolve(pipeline, "main"), Commit)
    checked = assert_type(cd.preflight(pipeline, commit), Preflight)
    image = assert_type(cd.build(pipeline, commit, checked), BuiltImage)
    release = assert_type(cd.render(pipeline, commit, image, checked), cd.Release)
    tested = [assert_type(cd.run_check(pipeline, commit, image, check), cd.Evidence) for check in pipeline.checks]
    planned = assert_type(cd.plan(target, release), Plan)
    decision = assert_type(cd.approve(pipeline, release, planned, tested=tested), Decision)
    assert_type(cd.deploy(pipeline, target, release, decision), Deployed)
    assert_type(cd.rollback(pipeline, target, "1"), Deployed)


def an_error_has_a_reason_and_a_hint(error: cd.DeliveryError) -> tuple[str, str]:
    return error.reason, error.hint


def the_order_of_stages_is_checked(pipeline: cd.Pipeline, target: cd.Target, commit: Commit) -> None:
    cd.render(pipeline, commit, commit, commit)  # pyright: ignore[reportArgumentType]
    cd.deploy(pipeline, target, commit)  # pyright: ignore[reportArgumentType]
    cd.plan(target)  # pyright: ignore[reportCallIssue]
    cd.roll_out(target)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
