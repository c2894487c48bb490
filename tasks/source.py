"""Stage: from a revision to exactly one commit."""

from prefect import task
from prefect_cd.tasks import workspace
from prefect_cd.tasks.stage import KEPT, RETRIES, log

from prefect_cd import source
from prefect_cd.pipeline import Pipeline
from prefect_cd.release import Commit


@task(name="resolve revision", task_run_name="resolve {revision}", **KEPT, **RETRIES)
def resolve(pipeline: Pipeline, revision: str) -> Commit:
    """Resolve a branch, tag or SHA once; the commit names everything after.

    Args:
        pipeline: whose repository.
        revision: branch, tag, full or short SHA.

    Raises:
        UnknownRevision: nothing has that name.
        RepositoryUnreachable: the repository does not answer; retried.
        Forbidden: it refuses us.
    """
    settings = pipeline.source
    repository = workspace.repository(settings)
    sha = source.resolve(repository, revision, timeout=settings.timeout)
    into = workspace.folder() / sha[:12]
    commit = source.checkout(repository, sha, into, timeout=settings.timeout, revision=revision)
    log().info("%s is %s: %s (%s)", revision, commit.sha, commit.subject, commit.author)
    return commit
