"""`prefect-cd rollout deployment/app -n shop`: the verdict on rollouts, instead of `kubectl rollout status`.

Needs a kubeconfig, but neither a pipeline file nor Prefect, whose import would take longer than most rollouts. It
decides which workloads are meant and when their rollout began; `prefect_cd.rollout.watch` does the rest.
"""

import argparse
import asyncio
import json
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone

from pydantic import ValidationError

from prefect_cd.deployments import terminal
from prefect_cd.deployments.rollout_view import View, document, view
from prefect_cd.errors import DeliveryError, Errored, Failed, Forbidden, Invalid, RolloutFailed
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.kubeconfig import default_namespace
from prefect_cd.kube.objects import Object, as_time, dig
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.selectors import selector_query
from prefect_cd.pipeline.models import ClusterAccess, RolloutSettings
from prefect_cd.rollout.watch.loop import watch
from prefect_cd.rollout.watch.related import WORKLOAD_KINDS, is_owned_by, labels_of, selects_pods_of
from prefect_cd.rollout.watch.report import Report, report_of

_COMPLETE, _FAILED, _UNKNOWN = 0, 1, 2
_FIRST_PATIENCE = timedelta(seconds=5)
"""For an API server that has never answered; after its first answer the usual patience applies."""
_MOST_NAMES = 10
_IDENTITY = ("app", "app.kubernetes.io/name", "app.kubernetes.io/instance")
"""Labels that say which application an object belongs to."""
_KINDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("deployment", "deployments", "deploy"), ("apps/v1", "Deployment")),
    **dict.fromkeys(("statefulset", "statefulsets", "sts"), ("apps/v1", "StatefulSet")),
    **dict.fromkeys(("daemonset", "daemonsets", "ds"), ("apps/v1", "DaemonSet")),
    **dict.fromkeys(("job", "jobs"), ("batch/v1", "Job")),
}


def run(arguments: argparse.Namespace) -> int:
    """Watch rollouts and show them; the exit code is 0 for complete, 1 for failed, 2 for could not find out."""
    shown = view(live=arguments.output != "json" and sys.stdout.isatty(), silent=arguments.output == "json")
    report: Report | None = None
    error: DeliveryError | None = None
    try:
        with shown:
            report = asyncio.run(_watched(arguments, shown))
    except RolloutFailed as failed:
        report, error = report_of(failed), failed
    except DeliveryError as other:
        error = other
    except Exception as bug:  # noqa: BLE001  Python would exit with 1, which means failed
        terminal.write_error(traceback.format_exc())
        error = Errored(f"{type(bug).__name__}: {bug}", hint="this is a bug in prefect-cd: please report it")
    if arguments.output == "json":
        terminal.write(f"{json.dumps(document(report, error), indent=2)}\n")
    elif error:
        terminal.write_error(f"{error}\n")
    return _COMPLETE if error is None else _FAILED if isinstance(error, Failed) else _UNKNOWN


async def _watched(arguments: argparse.Namespace, shown: View) -> Report:
    access = ClusterAccess(kubeconfig=arguments.kubeconfig, context=arguments.context)
    namespace = arguments.namespace or default_namespace(access)
    settings = settings_of(timeout=arguments.timeout, settle=arguments.settle)
    refs = [ref_of(text, namespace) for text in arguments.workloads]
    began = datetime.now(timezone.utc)
    async with connect(access, patience=_FIRST_PATIENCE) as cluster:
        workloads = await asyncio.gather(*(_workload(cluster, ref) for ref in refs))
        services = await services_of(cluster, namespace, workloads)
    async with connect(access) as cluster:
        return await watch(
            cluster,
            [*workloads, *services],
            settings,
            since=min(changed_at(workload) for workload in workloads),
            started_at=began,
            on_change=shown.show,
        )


def settings_of(**options: str | None) -> RolloutSettings:
    """The defaults of the pipeline file, with the options that are set.

    Raises:
        Invalid: an option is not a duration.
    """
    try:
        return RolloutSettings.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise Invalid(message, where=f"--{first['loc'][0]}", hint="see `prefect-cd rollout --help`") from None


def ref_of(text: str, namespace: str) -> Ref:
    """What `deployment/app` (or `deploy/app`, `deployments.apps/app`) means.

    Raises:
        Invalid: it is not of this form, or of a kind that has no rollout.
    """
    kind, slash, name = text.partition("/")
    if not slash or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
        raise Invalid(f"{text!r} is not KIND/NAME", hint="write it as in `prefect-cd rollout deployment/app`")
    known = _KINDS.get(kind.lower().partition(".")[0])
    if known is None:
        kinds = ", ".join(sorted(name.lower() for name in WORKLOAD_KINDS))
        raise Invalid(f"{kind!r} is not a kind with a rollout", where=text, hint=f"use one of {kinds}")
    return Ref(*known, namespace, name)


async def _workload(cluster: Cluster, ref: Ref) -> Object:
    workload = await cluster.get(ref)
    if workload is None:
        others = await cluster.list(await cluster.kind(ref.api_version, ref.kind), ref.namespace, only_metadata=True)
        names = sorted(other["metadata"]["name"] for other in others)
        listed = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
        raise Invalid(
            f"there is no {ref.kind} {ref.name!r} in namespace {ref.namespace!r}",
            where=str(ref),
            hint=f"there are: {listed}" if names else "there are none: is it another namespace (-n) or context?",
        )
    return workload


async def services_of(cluster: Cluster, namespace: str, workloads: Sequence[Object]) -> list[Object]:
    """The Services to assess with the workloads; none where we may not read them."""
    try:
        services = await cluster.list(await cluster.kind("v1", "Service"), namespace)
        versions = [*workloads, *await _replica_sets(cluster, namespace, workloads)]
        selecting = [service for service in services if any(selects_pods_of(service, item) for item in versions)]
        related = [
            service
            for service in services
            if service not in selecting and any(is_related(service, workload) for workload in workloads)
        ]
        kinds = [await cluster.kind("apps/v1", kind) for kind in sorted(WORKLOAD_KINDS - {"Job"})] if related else []
        lists = await asyncio.gather(*(cluster.list(kind, namespace) for kind in kinds))
    except Forbidden:
        return []
    others = [workload for items in lists for workload in items]
    # a Service that selects the pods of another workload belongs to that one
    return selecting + [
        service for service in related if not any(selects_pods_of(service, workload) for workload in others)
    ]


async def _replica_sets(cluster: Cluster, namespace: str, workloads: Sequence[Object]) -> list[Object]:
    """ReplicaSets of Deployments, old ones too: a Service that selected an old version is meant for the new one."""
    kind = await cluster.kind("apps/v1", "ReplicaSet")
    deployments = [workload for workload in workloads if workload["kind"] == "Deployment"]
    queries = [selector_query(workload["spec"]["selector"]) for workload in deployments]
    lists = await asyncio.gather(*(cluster.list(kind, namespace, labels=labels) for labels in queries))
    uids = {workload["metadata"]["uid"] for workload in workloads}
    return [item for items in lists for item in items if any(is_owned_by(item, uid) for uid in uids)]


def is_related(service: Object, workload: Object) -> bool:
    """Whether a Service is probably meant for a workload whose pods it does not select.

    Tells by the name, by a part of the selector (a second label may be wrong), or by a label of the application. The
    time of creation proves nothing: an operator may create the pods of the Service.
    """
    template = dig(workload, "spec", "template", "metadata", "labels") or {}
    selector = dig(service, "spec", "selector") or {}
    service_labels, workload_labels = labels_of(service), labels_of(workload)
    return bool(
        service["metadata"]["name"] == workload["metadata"]["name"]
        or selector.items() & template.items()
        or any(service_labels.get(key) and service_labels.get(key) == workload_labels.get(key) for key in _IDENTITY)
    )


def changed_at(workload: Object) -> datetime:
    """When a client last wrote the workload's spec: what is older proves nothing about its rollout.

    Controllers write status and annotations, autoscalers the scale; neither starts a rollout
    (https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management).
    """
    metadata = workload["metadata"]
    written = [
        as_time(entry.get("time"))
        for entry in metadata.get("managedFields") or []
        if not entry.get("subresource") and "f:spec" in (entry.get("fieldsV1") or {})
    ]
    times = [at for at in [*written, as_time(metadata.get("creationTimestamp"))] if at]
    return max(times, default=datetime.now(timezone.utc))


__all__ = ["changed_at", "is_related", "ref_of", "run", "services_of"]
