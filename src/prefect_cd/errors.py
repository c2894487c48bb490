"""The tree of errors; every error has a code, a reason and a hint.

The first level decides what happens next; Prefect retries only the last of the three::

    DeliveryError
    ├── Invalid                 the input is wrong; usually found before anything is written
    │   ├── InvalidPipeline     all mistakes in the pipeline file, with file:line
    │   ├── InvalidManifest     an object that the cluster would refuse, with file:line
    │   ├── RequirementMissing  what the pods of a release need does not exist in the environment
    │   ├── UnknownRevision     no such branch, tag or commit
    │   ├── MissingTool         a program that a stage needs is not installed
    │   ├── MissingSuite        a test suite that the commit does not contain
    │   └── Forbidden           the cluster or registry denies access
    ├── Failed                  the answer is no
    │   ├── BuildFailed         the image does not build
    │   ├── GateFailed          a check or gate did not pass
    │   ├── RolloutFailed       the new pods do not become ready
    │   ├── OwnershipConflict   another manager owns what would be written
    │   ├── Rejected            an approver rejected the release
    │   ├── Expired             no decision came in time
    │   ├── Superseded          something newer runs already, or waits for approval instead
    │   ├── Vetoed              the release was rolled back or withdrawn here, and nobody said: again
    │   ├── ContentChanged      what would be applied is no longer what was approved
    │   ├── EnvironmentFrozen   an earlier rollback failed; it needs manual repair first
    │   ├── NoWayBack           a rollback of the release would not work, and the environment wants one
    │   ├── RolledBack          the release failed in an environment, which runs its known-good again
    │   └── RollbackFailed      the release failed in an environment, and so did the rollback
    └── Errored                 we could not find out
        ├── RepositoryUnreachable  the git repository does not answer
        ├── RegistryUnreachable    the image registry does not answer
        ├── ClusterUnreachable     the API server does not answer
        ├── GateErrored         a gate ended without a result (no report, no tests, timeout)
        ├── EnvironmentBusy     another writer holds the lock
        └── LockLost            this process is no longer the writer
"""

from typing import ClassVar


class DeliveryError(Exception):
    """The base of all errors that end a delivery; they are written for the user.

    Args:
        reason: what happened to which object, in one sentence.
        hint: the next command or the next edit.
        where: `file:line`, an object, or a URL.
        detail: longer evidence, for example the last lines of a log.
    """

    code: ClassVar[str] = "delivery-error"
    remedy: ClassVar[str] = "read the error's reason and hint"
    """What to do about any error of this class, for docs/errors.md; an error's own `hint` is more specific."""

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
        """Pickle all attributes: Prefect pickles what a task raises, to hand it to another process."""
        return (_revive, (type(self), self.reason, self.__dict__))


def _revive(kind: type[DeliveryError], reason: str, state: dict[str, object]) -> DeliveryError:
    error = kind.__new__(kind)
    Exception.__init__(error, reason)
    error.__dict__.update(state)
    return error


class Invalid(DeliveryError):
    """The input is wrong. Preflight usually finds it, before anything is written."""

    code = "invalid"
    remedy = "correct what the error names; starting again without a change gives the same error"


class InvalidPipeline(Invalid):
    """The pipeline file has mistakes; the error lists all of them."""

    code = "invalid-pipeline"
    remedy = "correct the lines that the error lists; `prefect-cd check FILE` lists them again"


class InvalidManifest(Invalid):
    """A manifest that the cluster would refuse."""

    code = "invalid-manifest"
    remedy = "correct the manifest at the file and line of the error, and push"


class RequirementMissing(Invalid):
    """What the pods of a release need does not exist in an environment, or its cluster would refuse the pods."""

    code = "requirement-missing"
    remedy = "create or correct what the error lists, with the command beside it, and start again; nothing was written"


class UnknownRevision(Invalid):
    """No such branch, tag or commit in the repository."""

    code = "unknown-revision"
    remedy = "push the commit, or correct the parameter `revision`"


class MissingTool(Invalid):
    """A program that a stage needs is not installed."""

    code = "missing-tool"
    remedy = "install the program on the machine that serves the pipeline"


class MissingSuite(Invalid):
    """A test suite that the commit does not contain."""

    code = "missing-suite"
    remedy = "add the suite to the commit, or correct its path in the pipeline file"


class Forbidden(Invalid):
    """The cluster or the registry knows who we are, and denies access."""

    code = "forbidden"
    remedy = "grant the permissions that the error lists (Role and RoleBinding), or correct the credentials"


class Failed(DeliveryError):
    """The answer is no."""

    code = "failed"
    remedy = "correct the cause that the error names, and push"


class BuildFailed(Failed):
    """The image does not build."""

    code = "build-failed"
    remedy = "read the builder's last lines in the error, correct the Dockerfile or the sources, and push"


class GateFailed(Failed):
    """A check or gate did not pass."""

    code = "gate-failed"
    remedy = "read the test report among the artifacts of the run, correct the cause, and push"


class RolloutFailed(Failed):
    """The new pods do not become ready.

    Args:
        reason: as in every `DeliveryError`, like the other arguments.
        report: the state of the workloads (`rollout.watch.report.Report`); None when there was nothing to observe.
    """

    code = "rollout-failed"
    remedy = "read cause, evidence and next step in the artifact; docs/categories.md explains the categories"

    def __init__(
        self, reason: str, *, report: object = None, hint: str = "", where: str = "", detail: str = ""
    ) -> None:
        super().__init__(reason, hint=hint, where=where, detail=detail)
        self.report = report


class OwnershipConflict(Failed):
    """Another manager owns what would be written."""

    code = "ownership-conflict"
    remedy = "let the other manager give the fields up, or set `take_over: true` for the environment"


class Rejected(Failed):
    """An approver rejected the release."""

    code = "rejected"
    remedy = "nothing has to be repaired; push a new commit, or start the release again"


class Expired(Failed):
    """No decision came in time."""

    code = "expired"
    remedy = "start the release again, and answer the form before `approval.expires`"


class Superseded(Failed):
    """Something newer runs already, or waits for approval instead of this release."""

    code = "superseded"
    remedy = "nothing; to run an older release on purpose, start `rollback` with its release id"


class Vetoed(Failed):
    """The release was rolled back or withdrawn in the environment, and the run does not say that it may come again."""

    code = "vetoed"
    remedy = "push a new commit, or start the release with `-p again=true` to bring the same one in again"


class ContentChanged(Failed):
    """What would be applied is no longer what was approved."""

    code = "content-changed"
    remedy = "open the new approval form, which shows what would be applied now"


class EnvironmentFrozen(Failed):
    """An earlier rollback failed; the environment needs manual repair first."""

    code = "environment-frozen"
    remedy = "repair what the error names, then start `rollback` for the environment, which ends the freeze"


class NoWayBack(Failed):
    """A rollback of the release would not work, and the environment says `rollback_check: stop`."""

    code = "no-way-back"
    remedy = "repair what the error lists, and start the release again; nothing was written"


class RolledBack(Failed):
    """The release failed in an environment, which runs its known-good again."""

    code = "rolled-back"
    remedy = "correct the cause that the error names, and push; the environment runs its known-good"


class RollbackFailed(Failed):
    """The release failed in an environment, and so did the rollback: the environment needs manual repair."""

    code = "rollback-failed"
    remedy = "act now: repair what both errors name, then start `rollback` for the environment"


class Errored(DeliveryError):
    """We could not find out; trying again may help."""

    code = "errored"
    remedy = "start again; where it persists, check what did not answer"


class RepositoryUnreachable(Errored):
    """The git repository does not answer."""

    code = "repository-unreachable"
    remedy = "check the URL, the network and `source.credentials`, then start again"


class RegistryUnreachable(Errored):
    """The image registry does not answer."""

    code = "registry-unreachable"
    remedy = "check the registry's name, the network and the login, then start again"


class ClusterUnreachable(Errored):
    """The API server does not answer."""

    code = "cluster-unreachable"
    remedy = "check the API server and the kubeconfig, then start again; recovery rolls back what was interrupted"


class GateErrored(Errored):
    """A gate ended without a result: no report, no tests, or a timeout."""

    code = "gate-errored"
    remedy = "make the suite write its report, or raise `timeout`; the log has its last lines"


class EnvironmentBusy(Errored):
    """Another writer holds the environment's lock."""

    code = "environment-busy"
    remedy = "wait for the other run, which the error names, or end it; then start again"


class LockLost(Errored):
    """This process is no longer the environment's writer: another one took over, or the lock was deleted."""

    code = "lock-lost"
    remedy = "nothing at once: recovery, or the next release, replaces what this run left; find out who took the lock"
