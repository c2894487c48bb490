"""Whether a release may go into an environment, decided from its records and its approval. Pure.

It makes no requests: callers pass records and one answer of git, and get an error or None.
"""

from prefect_cd.environment.journal import Damage, Entry, hidden_problem
from prefect_cd.environment.record import LOST, OPEN, Decision, Record, State
from prefect_cd.errors import ContentChanged, DeliveryError, EnvironmentFrozen, Invalid, Superseded
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.release.model import Release, Result, digest_of

_WHOLE = frozenset({State.KNOWN_GOOD, State.ROLLED_BACK})


class EnvironmentState(Result):
    """What an environment's records and its lock say.

    Attributes:
        newest: the newest release that may have changed the environment.
        known_good: what to go back to.
        entries: all records by their metadata, newest first.
        damaged: records that cannot be read, or were edited; see `damage_problem`.
    """

    newest: Record | None = None
    known_good: Record | None = None
    entries: tuple[Entry, ...] = ()
    damaged: tuple[Damage, ...] = ()

    @property
    def interrupted(self) -> Record | None:
        """The record of a rollout that has no outcome. Whoever holds the lock knows that its process has ended."""
        return self.newest if self.newest and self.newest.state in OPEN else None

    @property
    def lost(self) -> Record | None:
        """The interrupted rollout, where somebody deleted its record: what it added is known from the Lease only."""
        return self.newest if self.interrupted and self.interrupted.release_id == LOST else None

    @property
    def frozen(self) -> Record | None:
        """The record of a rollback that failed, where nothing has repaired the environment since."""
        return self.newest if self.newest and self.newest.state == State.ROLLBACK_FAILED else None

    @property
    def known(self) -> set[Ref]:
        """The objects that releases have brought in here and that may still exist.

        A version that is whole has pruned what it does not contain; one that is not may have left it, and so may those
        before it.
        """
        records = [record for record in (self.newest, self.known_good) if record]
        left = self.newest.known if self.newest and self.newest.state not in _WHOLE else ()
        return {Ref.of(item) for record in records for item in record.objects} | set(left)

    @property
    def replaced(self) -> tuple[Object, ...]:
        """The originals of objects of others that releases since the known-good took over and did not give back."""
        return self.newest.replaced if self.newest and self.newest.state not in _WHOLE else ()

    def runs(self, release: Release) -> bool:
        """Whether this release is the known-good, and no other rollout started after it."""
        return bool(
            self.known_good
            and self.newest
            and self.newest.number == self.known_good.number
            and self.known_good.release_hash == release.hash
        )


def blocked_by(
    environment: str, state: EnvironmentState, release: Release, *, older: bool | None
) -> DeliveryError | None:
    """Why `release` must not go into the environment now, or None.

    Args:
        environment: its name.
        state: its records.
        release: the candidate.
        older: whether the running commit contains the candidate's; None when git does not know.
    """
    if error := frozen_problem(state):
        return error
    rollback = _rollback_command(release.application, environment)
    running = state.known_good
    if older and running and running.commit and running.commit.sha != release.commit.sha:
        return Superseded(
            f"{environment} runs {running.commit.short}, which contains {release.commit.short} already",
            hint=f"to roll back: `{rollback} -p to=RELEASE`",
        )
    return None


def damage_problem(state: EnvironmentState) -> Invalid | None:
    """The error of a damaged record that may be the one that decides, or None: nothing is guessed."""
    return hidden_problem(state.damaged, state.known_good.number if state.known_good else None)


def frozen_problem(state: EnvironmentState) -> EnvironmentFrozen | None:
    """The error of a frozen environment, or None."""
    if (frozen := state.frozen) is None:
        return None
    return EnvironmentFrozen(
        f"{frozen.environment} is frozen: the rollback from {frozen.release_id} failed",
        detail=frozen.reason,
        hint=f"repair the cause, then `{_rollback_command(frozen.application, frozen.environment)}`",
    )


def withdrawn_problem(environment: str, release: Release, own: Record | None) -> Superseded | None:
    """Why a run must not bring its own release in again, or None.

    A run that waited for an approval starts again from the top; meanwhile, a user may have rolled its release back.

    Args:
        environment: its name.
        release: the candidate.
        own: the record of the candidate that this run wrote and that was good, if there is one.
    """
    if own is None or own.state != State.WITHDRAWN:
        return None
    return Superseded(
        f"this run brought {release.id} to {environment}, and a rollback has withdrawn it since",
        hint="to release it once more, start a new run",
    )


def _rollback_command(application: str, environment: str) -> str:
    return f"prefect deployment run 'rollback/{application}' -p environment={environment}"


def approval_problem(
    environment: str, *, required: bool, decision: Decision | None, content: str
) -> ContentChanged | None:
    """Why the approval at hand does not cover what is about to be applied, or None.

    Args:
        environment: its name.
        required: whether the environment requires an approval for this version.
        decision: the approval, if there is one.
        content: `content_digest` of what is about to be applied.
    """
    if decision is None:
        if not required:
            return None
        return ContentChanged(f"{environment} requires an approval, and there is none", hint="call `approve` first")
    if decision.content != content:
        return ContentChanged(
            f"what would be applied to {environment} is no longer what {decision.name} approved",
            hint="open the new approval form: it shows what would be applied now",
        )
    return None


def content_digest(environment: str, namespace: str, server: str, release_hash: str, changes: str) -> str:
    """Identity of what an approval covers: this release, these changes, this place. 64 hex digits."""
    return digest_of([environment, namespace, server, release_hash, changes])
