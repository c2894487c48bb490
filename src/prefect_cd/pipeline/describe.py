"""The steps of a release in words, as `prefect-cd check` prints them.

This module knows the pipeline file only, nothing of a particular release or cluster.
"""

import re
import shlex
from collections.abc import Iterator, Sequence

from prefect_cd.pipeline.models import Approval, Check, ClusterAccess, Environment, Gate, Pipeline, Probe
from prefect_cd.pipeline.types import duration_text


def describe(pipeline: Pipeline) -> str:
    """The steps of a release as a numbered list."""
    steps = [
        *_source_and_image(pipeline),
        *(_check(check) for check in pipeline.checks),
        *(_environment(environment) for environment in pipeline.environments),
        ["record the release as the known-good version of each environment, for later rollbacks"],
    ]
    width = len(str(len(steps)))
    lines = [f"A release of {pipeline.application}:"]
    for number, (first, *more) in enumerate(steps, start=1):
        lines.append(f"{number:>{width}}. {first}")
        lines += [f"{'':>{width}}  - {line}" for line in more]
    return "\n".join(lines)


def _source_and_image(pipeline: Pipeline) -> Iterator[list[str]]:
    source, image = pipeline.source, pipeline.image
    repository = re.sub("//[^/@]*@", "//", source.repository)  # without a password in the URL
    submodules = " with submodules" if source.submodules else ""
    yield [f"check out one commit of {repository}{submodules} (branch {source.branch} by default)"]
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
        f"(failed after {_count(rollout.crashes, 'crash', 'crashes')}; recoverable problems may last "
        f"{rollout.patience.text}), then check that it stays healthy for {duration_text(rollout.settle)}"
    )
    if environment.cluster_scoped:
        lines.append(f"allowed cluster-scoped objects: {_enumeration(environment.cluster_scoped, 'and')}")
    if environment.requirement_check == "warn":
        lines.append("roll out also where something that the pods need is certainly missing")
    if environment.take_over:
        lines.append("take over objects and fields of other field managers")
    if environment.probe:
        lines.append(_probe(environment.probe, environment.url or ""))
    lines += [f"gate {gate.name}: {_gate(gate, environment.url or '')}" for gate in environment.gates]
    lines.append(_rollback(environment))
    return lines


def _cluster(cluster: ClusterAccess) -> str:
    if cluster.in_cluster:
        return "the cluster that the worker runs in"
    if cluster.credentials:
        return f"the cluster of the Prefect block {cluster.credentials}"
    if cluster.context or cluster.kubeconfig:
        context = f"context {cluster.context}" if cluster.context else "the current context"
        return f"{context} of {cluster.kubeconfig}" if cluster.kubeconfig else f"the cluster of {context}"
    return "the cluster that the worker runs in, or else the cluster of the current context"


def _approval(approval: Approval) -> str:
    approvers = _enumeration(approval.approvers, "or") if approval.approvers else "a person"
    return f"wait until {approvers} approves exactly this release, for at most {duration_text(approval.expires)}"


def _gate(gate: Gate, url: str) -> str:
    within = f", within {duration_text(gate.timeout)}"
    if gate.http:
        contains = f" and contains {gate.http.contains!r}" if gate.http.contains else ""
        return f"GET {url.rstrip('/')}{gate.http.path} returns {gate.http.status}{contains}{within}"
    if gate.browser:
        return f"a browser runs the suite {gate.browser} against {url}{within}"
    if gate.run:
        return f"{_command(gate.run, gate.directory)} against {url}{within}"
    raise AssertionError(f"gate {gate.name} is of a kind that this module cannot describe")


def _probe(probe: Probe, url: str) -> str:
    limits = probe.limits
    parts = [
        f"at most {limits.failed} may fail",
        f"at most {limits.slow} may take longer than {duration_text(probe.slow)}" if limits.slow is not None else "",
        f"a good response at least every {duration_text(limits.gap)}" if limits.gap else "",
    ]
    requests = f"GET {url.rstrip('/')}{probe.path} {probe.rate:g} times a second"
    return f"meanwhile send {requests}: {_enumeration([part for part in parts if part], 'and')}"


def _rollback(environment: Environment) -> str:
    cause = "the rollout or a gate fails" if environment.gates else "the rollout fails"
    if environment.rollback == "never":
        return f"if {cause}: stop and leave the environment as it is"
    stop = "; a release whose rollback would not work is stopped" if environment.rollback_check == "stop" else ""
    return f"if {cause}: roll back to the known-good version{stop}"


def _command(run: Sequence[str], directory: str) -> str:
    return f"run `{shlex.join(run)}`" + (f" in {directory}" if directory != "." else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _enumeration(items: Sequence[str], conjunction: str) -> str:
    """`a, b and c`."""
    return f" {conjunction} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


__all__ = ["describe"]
