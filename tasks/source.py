"""Stage: from a revision to exactly one commit."""

from pathlib import Path

from prefect import task

from prefect_cd.manifests.line_diff import unified
from prefect_cd.pipeline.models import Pipeline
from prefect_cd.release import git
from prefect_cd.release.model import Commit
from prefect_cd.tasks import artifacts, workspace
from prefect_cd.tasks.stage import PERSISTED, RETRIES, log
from prefect_cd.tasks.summary import listed

_LARGEST_COMPARED = 1_000_000  # bytes


@task(name="resolve revision", task_run_name="resolve {revision}", **PERSISTED, **RETRIES)
@listed
def resolve(pipeline: Pipeline, revision: str) -> Commit:
    """Resolve a branch, tag or SHA once; all later stages use the commit that it returns.

    Args:
        pipeline: its repository has the revision.
        revision: branch, tag, full or short SHA.

    Raises:
        UnknownRevision: nothing has that name.
        RepositoryUnreachable: the repository does not answer; retried.
        Forbidden: it refuses us.
    """
    settings = pipeline.source
    repository = workspace.repository(settings)
    sha = git.resolve(repository, revision, timeout=settings.timeout)
    into = workspace.folder() / sha[:12]
    commit = git.checkout(repository, sha, into, timeout=settings.timeout, revision=revision)
    log().info("%s is %s: %s (%s)", revision, commit.sha, commit.subject, commit.author)
    return commit


@task(name="compare pipeline file", task_run_name="compare pipeline file", **PERSISTED)
def compare_pipeline_file(pipeline: Pipeline, commit: Commit, file: Path) -> bool:
    """Show how a pipeline file in the commit differs from the served one; runs use the served one only.

    Args:
        pipeline: what is served.
        commit: what is released.
        file: where the served pipeline was read from; the commit's is looked for under the same name.

    Returns:
        Whether they differ.
    """
    other = workspace.tree(pipeline.source, commit) / file.name
    if other.is_symlink() or not other.is_file():
        return False
    with other.open("rb") as committed:
        content = committed.read(_LARGEST_COMPARED + 1)
    if len(content) > _LARGEST_COMPARED:
        log().warning(
            "%s in the commit is larger than 1 MB: not compared with the served one, which is used", file.name
        )
        return True
    lines = unified(file.read_text().splitlines(), content.decode(errors="replace").splitlines())
    if lines:
        log().warning("%s in the commit differs from the served one; the run uses the served one", file.name)
        named = ["--- served (used)", "+++ in the commit", *lines]
        artifacts.pipeline_difference(pipeline.application, file.name, "\n".join(named))
    return bool(lines)
