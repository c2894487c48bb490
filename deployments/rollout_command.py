"""`prefect-cd rollout deployment/app -n shop`: the verdict on rollouts, in the place of `kubectl rollout status`.

Needs a kubeconfig and nothing else of ours: no pipeline file, no Prefect, whose import would take longer than most
rollouts. It decides which workloads are meant and since when they roll out; the rest is `prefect_cd.rollout.watch`.
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

from prefect_cd.deployments.rollout_view import View, document, view
from prefect_cd.errors import DeliveryError, Errored, Failed, Forbidden, Invalid, RolloutFailed
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.kubeconfig import default_namespace
from prefect_cd.kube.objects import Object, dig
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.selectors import selector_query
from prefect_cd.pipeline.models import ClusterAccess, RolloutSettings
from prefect_cd.rollout.diagnosis import as_time
from prefect_cd.rollout.watch.loop import watch
from prefect_cd.rollout.watch.related import WATCHED, labels_of, owned, sends_to
from prefect_cd.rollout.watch.report import Report, report_of

_COMPLETE, _DOOMED, _UNKNOWN = 0, 1, 2
_FIRST_PATIENCE = timedelta(seconds=5)
"""For an API server that does not answer at all; one that has answered is waited for as long as ever."""
_MOST_NAMES = 10
_IDENTITY = ("app", "app.kubernetes.io/name", "app.kubernetes.io/instance")
"""Labels that say whose an object is."""
_KINDS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("deployment", "deployments", "deploy"), ("apps/v1", "Deployment")),
    **dict.fromkeys(("statefulset", "statefulsets", "sts"), ("apps/v1", "StatefulSet")),
    **dict.fromkeys(("daemonset", "daemonsets", "ds"), ("apps/v1", "DaemonSet")),
    **dict.fromkeys(("job", "jobs"), ("batch/v1", "Job")),
}


def run(asked: argparse.Namespace) -> int:
    """Watch, show, and answer: 0 complete, 1 doomed, 2 could not find out."""
    shown = view(live=asked.output != "json" and sys.stdout.isatty(), silent=asked.output == "json")
    report: Report | None = None
    error: DeliveryError | None = None
    try:
        with shown:
            report = asyncio.run(_watched(asked, shown))
    except RolloutFailed as failed:
        report, error = report_of(failed), failed
    except DeliveryError as other:
        error = other
    except Exception as mistake:  # noqa: BLE001  Python would exit with 1, and that is the word for doomed
        traceback.print_exc()
        error = Errored(f"{type(mistake).__name__}: {mistake}", hint="this is a mistake of prefect-cd: report it")
    if asked.output == "json":
        sys.stdout.write(f"{json.dumps(document(report, error), indent=2)}\n")
    elif error:
        sys.stderr.write(f"{error}\n")
    return _COMPLETE if error is None else _DOOMED if isinstance(error, Failed) else _UNKNOWN


async def _watched(asked: argparse.Namespace, shown: View) -> Report:
    access = ClusterAccess(kubeconfig=asked.kubeconfig, context=asked.context)
    namespace = asked.namespace or default_namespace(access)
    settings = settings_of(timeout=asked.timeout, settle=asked.settle)
    refs = [ref_of(text, namespace) for text in asked.workloads]
    began = datetime.now(timezone.utc)
    async with connect(access, patience=_FIRST_PATIENCE) as cluster:
        workloads = await asyncio.gather(*(_found(cluster, ref) for ref in refs))
        services = await services_of(cluster, namespace, workloads)
    async with connect(access) as cluster:
        return await watch(
            cluster,
            [*workloads, *services],
            settings,
            since=min(changed_at(each) for each in workloads),
            begun=began,
            on_change=shown.show,
        )


def settings_of(**given: str | None) -> RolloutSettings:
    """The defaults of the pipeline file, and what the options say otherwise.

    Raises:
        Invalid: an option is no duration.
    """
    try:
        return RolloutSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        said = str(first["msg"]).removeprefix("Value error, ")
        raise Invalid(said, where=f"--{first['loc'][0]}", hint="see `prefect-cd rollout --help`") from None


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
        kinds = ", ".join(sorted(each.lower() for each in WATCHED))
        raise Invalid(f"{kind!r} is no kind with a rollout", where=text, hint=f"use one of {kinds}")
    return Ref(*known, namespace, name)


async def _found(cluster: Cluster, ref: Ref) -> Object:
    workload = await cluster.get(ref)
    if workload is None:
        others = await cluster.list(await cluster.kind(ref.api_version, ref.kind), ref.namespace, only_metadata=True)
        names = sorted(each["metadata"]["name"] for each in others)
        told = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
        raise Invalid(
            f"there is no {ref.kind} {ref.name!r} in namespace {ref.namespace!r}",
            where=str(ref),
            hint=f"there are: {told}" if names else "there is none at all: is it another namespace (-n) or context?",
        )
    return workload


async def services_of(cluster: Cluster, namespace: str, workloads: Sequence[Object]) -> list[Object]:
    """The Services that are judged with the workloads; none where we may not read them."""
    try:
        services = await cluster.list(await cluster.kind("v1", "Service"), namespace)
        versions = [*workloads, *await _replica_sets(cluster, namespace, workloads)]
        mine = [each for each in services if any(sends_to(each, version) for version in versions)]
        strays = [each for each in services if each not in mine and any(beside(each, one) for one in workloads)]
        kinds = [await cluster.kind("apps/v1", kind) for kind in sorted(WATCHED - {"Job"})] if strays else []
        neighbours = await asyncio.gather(*(cluster.list(kind, namespace) for kind in kinds))
    except Forbidden:
        return []
    return mine + [each for each in strays if not any(sends_to(each, other) for some in neighbours for other in some)]


async def _replica_sets(cluster: Cluster, namespace: str, workloads: Sequence[Object]) -> list[Object]:
    """Those of Deployments, present and past: a Service that led to an old version was meant for the new one, too."""
    kind = await cluster.kind("apps/v1", "ReplicaSet")
    chosen = [selector_query(each["spec"]["selector"]) for each in workloads if each["kind"] == "Deployment"]
    found = await asyncio.gather(*(cluster.list(kind, namespace, labels=labels) for labels in chosen))
    uids = {each["metadata"]["uid"] for each in workloads}
    return [each for some in found for each in some if any(owned(each, uid) for uid in uids)]


def beside(service: Object, workload: Object) -> bool:
    """Whether a Service was meant for a workload whose pods it does not select.

    By its name, by a part of its selector (a second label may be wrong), or by a label that says what it is a part
    of. That both were written in the same minute means nothing: its pods may be an operator's to make.
    """
    template = dig(workload, "spec", "template", "metadata", "labels") or {}
    wanted = dig(service, "spec", "selector") or {}
    own, its = labels_of(service), labels_of(workload)
    return bool(
        service["metadata"]["name"] == workload["metadata"]["name"]
        or wanted.items() & template.items()
        or any(own.get(key) and own.get(key) == its.get(key) for key in _IDENTITY)
    )


def changed_at(workload: Object) -> datetime:
    """When somebody last wrote what a workload should be: what is older proves nothing about its rollout.

    Controllers write status and annotations, autoscalers the scale, and neither begins a rollout
    (https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management).
    """
    metadata = workload["metadata"]
    written = [
        as_time(each.get("time"))
        for each in metadata.get("managedFields") or []
        if not each.get("subresource") and "f:spec" in (each.get("fieldsV1") or {})
    ]
    times = [at for at in [*written, as_time(metadata.get("creationTimestamp"))] if at]
    return max(times, default=datetime.now(timezone.utc))


__all__ = ["beside", "changed_at", "ref_of", "run", "services_of"]
