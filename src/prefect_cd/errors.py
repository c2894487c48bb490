"""What can go wrong, in one tree; every error has a code, a reason and a hint.

The first level is the word that decides what happens next, and Prefect retries only the last of the three::

    DeliveryError
    ├── Invalid                 the input is wrong; nothing was written anywhere
    │   ├── InvalidPipeline     every complaint about the pipeline file, each with file:line
    │   ├── InvalidManifest     an object that the cluster would not take, with file:line
    │   ├── UnknownRevision     no such branch, tag or commit
    │   ├── MissingTool         a program that a stage needs is not installed
    │   ├── MissingSuite        a test suite that the commit does not contain
    │   └── Forbidden           the cluster or registry knows us and refuses
    ├── Failed                  the answer is no
    │   ├── BuildFailed         the image does not build
    │   ├── GateFailed          a check or gate found something wrong
    │   ├── RolloutFailed       the new pods will not come up
    │   ├── OwnershipConflict   another manager owns what we would write
    │   ├── Rejected            a person said no
    │   ├── Expired             nobody answered in time
    │   ├── Superseded          something newer runs already, or asks in our place
    │   ├── ContentChanged      what would be applied is no longer what was approved
    │   ├── EnvironmentFrozen   an earlier rollback failed; a person is needed first
    │   ├── RolledBack          failed in an environment, which is whole again
    │   └── RollbackFailed      failed in an environment, and so did going back
    └── Errored                 we could not find out
        ├── RepositoryUnreachable
        ├── RegistryUnreachable
        ├── ClusterUnreachable
        ├── GateErrored         a gate ended without an answer (no report, no tests, timeout)
        ├── EnvironmentBusy     another writer holds the lock
        └── LockLost            we were the writer and are no longer
"""

from typing import ClassVar


class DeliveryError(Exception):
    """Something a person must be told.

    Args:
        reason: what happened to which object, in one sentence.
        hint: the next command or the next edit.
        where: `file:line`, an object, or a URL.
        detail: longer evidence, for example the last lines of a log.
    """

    code: ClassVar[str] = "delivery-error"

    def __init__(self, reason: str, *, hint: str = "", where: str = "", detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.where = where
        self.detail = detail

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.reason}" if self.where else self.reason]
        if self.detail:
            lines += ["", self.detail.rstrip(), ""]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        lines[0] = f"[{self.code}] {lines[0]}"
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive a process boundary: Prefect pickles what a task raises."""
        return (_revive, (type(self), self.reason, self.__dict__))


def _revive(kind: type[DeliveryError], reason: str, state: dict[str, object]) -> DeliveryError:
    error = kind.__new__(kind)
    Exception.__init__(error, reason)
    error.__dict__.update(state)
    return error


class Invalid(DeliveryError):
    """The input is wrong; nothing was written anywhere."""

    code = "invalid"


class InvalidPipeline(Invalid):
    """The pipeline file has mistakes; all of them are listed."""

    code = "invalid-pipeline"


class InvalidManifest(Invalid):
    """A manifest that the cluster would not take."""

    code = "invalid-manifest"


class UnknownRevision(Invalid):
    """No such branch, tag or commit in the repository."""

    code = "unknown-revision"


class MissingTool(Invalid):
    """A program that a stage needs is not installed."""

    code = "missing-tool"


class MissingSuite(Invalid):
    """A test suite that the commit does not contain."""

    code = "missing-suite"


class Forbidden(Invalid):
    """The cluster or the registry knows us and refuses."""

    code = "forbidden"


class Failed(DeliveryError):
    """The answer is no."""

    code = "failed"


class BuildFailed(Failed):
    """The image does not build."""

    code = "build-failed"


class GateFailed(Failed):
    """A check or gate found something wrong."""

    code = "gate-failed"


class RolloutFailed(Failed):
    """The new pods will not come up.

    Args:
        reason: as in every `DeliveryError`, like the other arguments.
        report: how the workloads stood (`rollout.watch.report.Report`); None when there was nothing to look at.
    """

    code = "rollout-failed"

    def __init__(
        self, reason: str, *, report: object = None, hint: str = "", where: str = "", detail: str = ""
    ) -> None:
        super().__init__(reason, hint=hint, where=where, detail=detail)
        self.report = report


class OwnershipConflict(Failed):
    """Another manager owns what we would write."""

    code = "ownership-conflict"


class Rejected(Failed):
    """A person said no."""

    code = "rejected"


class Expired(Failed):
    """Nobody answered in time."""

    code = "expired"


class Superseded(Failed):
    """Something newer runs already, or asks in our place."""

    code = "superseded"


class ContentChanged(Failed):
    """What would be applied is no longer what was approved."""

    code = "content-changed"


class EnvironmentFrozen(Failed):
    """An earlier rollback failed; a person is needed first."""

    code = "environment-frozen"


class RolledBack(Failed):
    """Failed in an environment, which is whole again."""

    code = "rolled-back"


class RollbackFailed(Failed):
    """Failed in an environment, and so did going back: a person is needed."""

    code = "rollback-failed"


class Errored(DeliveryError):
    """We could not find out; trying again may help."""

    code = "errored"


class RepositoryUnreachable(Errored):
    """The git repository does not answer."""

    code = "repository-unreachable"


class RegistryUnreachable(Errored):
    """The image registry does not answer."""

    code = "registry-unreachable"


class ClusterUnreachable(Errored):
    """The API server does not answer."""

    code = "cluster-unreachable"


class GateErrored(Errored):
    """A gate ended without an answer: no report, no tests, no time."""

    code = "gate-errored"


class EnvironmentBusy(Errored):
    """Another writer holds the environment's lock."""

    code = "environment-busy"


class LockLost(Errored):
    """We were the environment's writer and are no longer."""

    code = "lock-lost"
