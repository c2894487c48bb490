"""Whether a release may go into an environment, judged from what the records say. Pure.

It knows no cluster and no Prefect: records and one answer of git in, an obstacle or nothing out.
"""

from prefect_cd.environment.records import Record, State
from prefect_cd.errors import DeliveryError, EnvironmentFrozen, Superseded
from prefect_cd.release.model import Release, Result, digest_of


class EnvironmentState(Result):
    """What an environment's records say."""

    newest: Record | None = None
    known_good: Record | None = None

    @property
    def interrupted(self) -> Record | None:
        """The record of a rollout that nobody ended; with the lock in our hands, its process is dead."""
        return self.newest if self.newest and self.newest.state == State.STARTED else None

    @property
    def known_kinds(self) -> set[tuple[str, str]]:
        """(apiVersion, kind) of what earlier releases may have left here."""
        records = [record for record in (self.newest, self.known_good) if record]
        return {(item["apiVersion"], item["kind"]) for record in records for item in record.objects}

    def runs(self, release: Release) -> bool:
        """Whether this release is the known-good, and nothing was tried after it."""
        return bool(
            self.known_good
            and self.newest
            and self.newest.number == self.known_good.number
            and self.known_good.release_hash == release.hash
        )


def blocked_by(
    environment: str, standing: EnvironmentState, release: Release, *, older: bool | None
) -> DeliveryError | None:
    """Why `release` must not go into the environment now, or None.

    Args:
        environment: its name.
        standing: its records.
        release: the candidate.
        older: whether the running commit contains the candidate's (git's answer; None when it does not know).
    """
    rollback = f"prefect deployment run 'rollback/{release.application}' -p environment={environment}"
    if standing.newest and standing.newest.state == State.ROLLBACK_FAILED:
        return EnvironmentFrozen(
            f"{environment} is frozen: going back from {standing.newest.release_id} failed",
            detail=standing.newest.reason,
            hint=f"repair the cause, then `{rollback}`",
        )
    running = standing.known_good
    if older and running and running.commit and running.commit.sha != release.commit.sha:
        return Superseded(
            f"{environment} runs {running.commit.short}, which contains {release.commit.short} already",
            hint=f"to go back on purpose: `{rollback} -p to=RELEASE`",
        )
    return None


def content_digest(environment: str, namespace: str, server: str, release_hash: str, changes: str) -> str:
    """Identity of what a person is asked about: this release, changing exactly this, there. 64 hex digits."""
    return digest_of([environment, namespace, server, release_hash, changes])
