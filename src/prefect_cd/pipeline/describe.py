"""The plan in words: what a pipeline file makes a release do, as `prefect-cd check` prints it.

It decides the words only. It knows the pipeline file and nothing of a particular release or cluster.
"""

import re
import shlex
from collections.abc import Iterator, Sequence

from prefect_cd.pipeline.models import Approval, Check, ClusterAccess, Environment, Gate, Pipeline, Probe
from prefect_cd.pipeline.types import duration_text


def describe(pipeline: Pipeline) -> str:
    """The steps of a release, numbered, as a person would say them."""
    steps = [
        *_beginning(pipeline),
        *(_check(check) for check in pipeline.checks),
        *(_environment(environment) for environment in pipeline.environments),
        ["record what passed as each environment's known-good, which a later release goes back to"],
    ]
    width = len(str(len(steps)))
    lines = [f"A release of {pipeline.application}:"]
    for number, (first, *more) in enumerate(steps, start=1):
        lines.append(f"{number:>{width}}. {first}")
        lines += [f"{'':>{width}}  - {line}" for line in more]
    return "\n".join(lines)


def _beginning(pipeline: Pipeline) -> Iterator[list[str]]:
    source, image = pipeline.source, pipeline.image
    repository = re.sub("//[^/@]*@", "//", source.repository)  # a password in the URL is nobody's business
    submodules = " with submodules" if source.submodules else ""
    yield [f"check out one commit of {repository}{submodules} (branch {source.branch} unless told otherwise)"]
    builder = image.builder or "the first of docker, podman and buildah that works"
    dockerfile = image.dockerfile if image.context == "." else f"{image.context}/{image.dockerfile}"
    yield [f"build {image.name} once from {dockerfile} with {builder}, within {duration_text(image.timeout)}"]


def _check(check: Check) -> list[str]:
    return [f"{check.name}: {_command(check.run, check.directory)}, within {duration_text(check.timeout)}"]


def _environment(environment: Environment) -> list[str]:
    lines = [f"{environment.name}: namespace {environment.namespace} in {_cluster(environment.cluster)}"]
    if environment.approval:
        lines.append(_approval(environment.approval))
    rollout = environment.rollout
    lines.append(
        f"apply {environment.manifests} and watch the rollout for at most {duration_text(rollout.timeout)} "
        f"(doomed after {_count(rollout.crashes, 'crash', 'crashes')}; "
        f"{rollout.patience.text} for what may heal), then see it stay up for {duration_text(rollout.settle)}"
    )
    if environment.cluster_scoped:
        lines.append(f"cluster-scoped objects it may contain: {_listed(environment.cluster_scoped, 'and')}")
    if environment.take_over:
        lines.append("take over what other managers own")
    if environment.probe:
        lines.append(_probe(environment.probe, environment.url or ""))
    lines += [f"gate {gate.name}: {_gate(gate, environment.url or '')}" for gate in environment.gates]
    lines.append(_rollback(environment))
    return lines


def _cluster(cluster: ClusterAccess) -> str:
    if cluster.in_cluster:
        return "the cluster that this runs in"
    if cluster.credentials:
        return f"the cluster of the Prefect block {cluster.credentials}"
    if cluster.context or cluster.kubeconfig:
        context = f"context {cluster.context}" if cluster.context else "the current context"
        return f"{context} of {cluster.kubeconfig}" if cluster.kubeconfig else f"the cluster of {context}"
    return "the cluster that this runs in, or else of the current context"


def _approval(approval: Approval) -> str:
    who = _listed(approval.approvers, "or") if approval.approvers else "a person"
    return f"first, {who} approves exactly this release within {duration_text(approval.expires)}"


def _gate(gate: Gate, url: str) -> str:
    within = f", within {duration_text(gate.timeout)}"
    if gate.http:
        contains = f" and contains {gate.http.contains!r}" if gate.http.contains else ""
        return f"GET {url.rstrip('/')}{gate.http.path} answers {gate.http.status}{contains}{within}"
    if gate.browser:
        return f"a browser runs the suite {gate.browser} against {url}{within}"
    return f"{_command(gate.run or (), gate.directory)} against {url}{within}"


def _probe(probe: Probe, url: str) -> str:
    limits = probe.limits
    parts = [
        f"at most {limits.failed} may fail",
        f"at most {limits.slow} may take longer than {duration_text(probe.slow)}" if limits.slow is not None else "",
        f"a good answer at least every {duration_text(limits.gap)}" if limits.gap else "",
    ]
    asked = f"GET {url.rstrip('/')}{probe.path} {probe.rate:g} times a second"
    return f"meanwhile {asked}: {_listed([part for part in parts if part], 'and')}"


def _rollback(environment: Environment) -> str:
    cause = "the rollout or a gate fails" if environment.gates else "the rollout fails"
    if environment.rollback == "never":
        return f"if {cause}: stop and leave it as it is"
    return f"if {cause}: go back to known-good"


def _command(run: Sequence[str], directory: str) -> str:
    return f"run `{shlex.join(run)}`" + (f" in {directory}" if directory != "." else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _listed(words: Sequence[str], word: str) -> str:
    return f" {word} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


__all__ = ["describe"]
