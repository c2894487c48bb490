"""Stage: a person decides, in a form of the Prefect UI.

Where the run has a deployment it is suspended: its process ends, and Prefect starts the flow again from the top when
the form is answered. `approve` is then called again: with the same content it returns the answer, with other content it
asks again, because the content is the key of the question. Elsewhere the run is paused: `approve` waits in its process,
and returns when the form is answered.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput, delete_flow_run_input, keyset_from_base_key, read_flow_run_input
from prefect.input.run_input import Keyset
from prefect.runtime import deployment, flow_run

from prefect_cd.environment.record import Decision
from prefect_cd.errors import Expired, Invalid, Rejected
from prefect_cd.gates.evidence import Evidence
from prefect_cd.pipeline.models import Approval, Pipeline
from prefect_cd.pipeline.types import duration_text
from prefect_cd.release.model import Release
from prefect_cd.tasks import markdown, markdown_changes, summary
from prefect_cd.tasks.changes import Plan, commits_between, refuse_blocked
from prefect_cd.tasks.runs import show, title_of, waiting_title
from prefect_cd.tasks.stage import log

GRACE = timedelta(minutes=10)
"""How long after our limit Prefect's own limit for an answer comes."""
_MAX_QUESTIONS = 20


class ApprovalForm(RunInput):
    """What an approver fills in."""

    decision: Literal["approve", "reject"]
    name: str
    comment: str = ""

    @classmethod
    def save(cls, keyset: Keyset, flow_run_id: UUID | None = None) -> None:
        """Save the form, unless that is done: by Prefect for the run's page, by us as a copy, or from that copy."""
        if read_flow_run_input(keyset["description"], flow_run_id) is None:
            if read_flow_run_input(keyset["schema"], flow_run_id) is not None:
                delete_flow_run_input(keyset["schema"], flow_run_id)
            super().save(keyset, flow_run_id)


def approve(
    pipeline: Pipeline, release: Release, planned: Plan, *, tested: Sequence[Evidence], note: str = ""
) -> Decision:
    """Wait for an approver's decision on exactly this release and this change.

    Args:
        pipeline: for the commits since what runs there.
        release: the candidate.
        planned: what it would change there now.
        tested: the evidence of the gates before.
        note: why the question is asked again.

    Raises:
        Invalid: the diff is too long for anybody to read.
        EnvironmentFrozen, Superseded, RequirementMissing, NoWayBack: `deploy` would refuse the release; nobody is
            asked.
        Rejected: the answer is no.
        Expired: there was no answer in time.
    """
    refuse_blocked(pipeline, release, planned)
    if markdown_changes.length(planned.changes) > markdown_changes.LONGEST:
        raise Invalid(
            f"what would change in {planned.target.name} is too long to be shown, so nobody can approve it",
            hint="release it in several commits",
        )
    target = planned.target
    settings = target.environment.approval or Approval()
    title, stage = title_of(release.commit, target.name), f"approval of {target.name}"
    prefix = f"approve-{target.name}-"
    key = f"{prefix}{planned.content}"  # in full: of a shorter one, a commit could have two contents
    asked = [question for question, _ in _questions()]
    if not note and any(question.startswith(prefix) and not question.startswith(key) for question in asked):
        note = f"what would be applied to {target.name} is no longer what an earlier answer was given for"
    for number in range(_MAX_QUESTIONS):
        form = markdown.approval(
            release,
            target.name,
            planned.changes,
            findings=planned.findings,
            way_back_findings=planned.way_back,
            running=planned.running,
            commits=commits_between(pipeline, release, planned.running),
            tested=tested,
            server=planned.server,
            version=planned.kubernetes,
            namespace=target.environment.namespace,
            content=planned.content,
            note=note,
            run=flow_run.ui_url or "",
            whole=planned.page,
        )
        if f"{key}-{number}" not in asked:  # else this run was resumed by the answer
            until = datetime.now(timezone.utc) + settings.expires
            show(waiting_title(title, until))
            summary.wait(pipeline, stage, f"until {until:%b %d %H:%M} UTC; press Resume to answer")
        answer = _ask(f"{key}-{number}", form, settings.expires, target.name)
        show(title)
        note = _incomplete(answer, settings)
        if not note:
            break
        log().warning("the answer does not count: %s", note)
    else:
        raise Expired(f"{_MAX_QUESTIONS} answers, and none of them counts", hint="start the release again")
    name, comment = answer.name.strip(), answer.comment.strip()
    signed = f"{name}: {comment}" if comment else name
    approved = answer.decision == "approve"
    summary.answered(stage, f"{'approved' if approved else 'rejected'} by {signed}", passed=approved)
    if not approved:
        raise Rejected(f"{release.id} was rejected for {target.name} by {signed}", hint="nothing was changed there")
    log().info("%s was approved for %s by %s; content %s", release.id, target.name, signed, planned.content)
    return Decision(
        approved=True, name=name, comment=comment, decided_at=datetime.now(timezone.utc), content=planned.content
    )


def _incomplete(answer: ApprovalForm, settings: Approval) -> str:
    """Why an answer does not count; empty when it does."""
    name = answer.name.strip()
    if not name:
        return "a decision needs the approver's name"
    if settings.approvers and name not in settings.approvers:
        return f"{name} is not an approver here; approvers are: {', '.join(settings.approvers)}"
    return ""


def _ask(key: str, text: str, expires: timedelta, environment: str) -> ApprovalForm:
    form = ApprovalForm.with_initial_data(description=text)
    # Prefect's own limit comes later than ours: it would end the run as Failed, and not as Expired
    limit = int((expires + GRACE).total_seconds())
    late = Expired(f"no decision about {environment} within {duration_text(expires)}", hint="start the release again")
    try:
        if deployment.id:
            form.save(form_copy(key))
            answer = suspend_flow_run(wait_for_input=form, timeout=limit, key=key)
        else:
            answer = pause_flow_run(wait_for_input=form, timeout=int(expires.total_seconds()), key=key, poll_interval=1)
    except FlowPauseTimeout as error:
        raise late from error
    if deployment.id and _waited(key) > expires:
        raise late
    return answer


def form_copy(key: str) -> Keyset:
    """Where a copy of a form is kept: Prefect saves the form itself only after it has suspended the run.

    A process that is killed between the two leaves a run that nobody can answer; `serve` restores the form from the
    copy. Saving the form itself earlier does not help: Prefect's server deletes it when the run is suspended.
    """
    return keyset_from_base_key(f"form-{key}")


def _waited(key: str) -> timedelta:
    """How long the question was open, by the server's clock."""
    return next((waited for asked, waited in _questions() if asked == key), timedelta())


def _questions() -> list[tuple[str, timedelta]]:
    """The keys of this run's questions so far, and how long each was open."""
    if flow_run.id is None:
        return []
    with get_client(sync_client=True) as client:
        states = sorted(client.read_flow_run_states(UUID(flow_run.id)), key=lambda state: state.timestamp)
    return [
        (state.state_details.pause_key, following.timestamp - state.timestamp)
        for state, following in pairwise(states)
        if state.state_details.pause_key
    ]
