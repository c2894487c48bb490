"""What keeps a release from running is known before its first write: the failing rollouts of benchmarks/verdict.

Nothing is applied, so that no rollout happens: their objects are only checked, each scenario in its own namespace.
"""

import asyncio
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from typing_extensions import Self

from prefect_cd.environment.requirements import Unmet
from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess, Environment
from prefect_cd.tasks.requirements import check_requirements
from prefect_cd.tasks.target import Target

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120), pytest.mark.needs("limitranges", "resourcequotas")]
SCENARIOS = Path(__file__).parents[3] / "benchmarks" / "verdict" / "scenarios"
REGISTRY = os.environ.get("REGISTRY", "")
STOPPED = {
    "claim-missing": "deployment/app: volume data: persistentvolumeclaim/data does not exist",
    "configmap-key-missing": "deployment/app: container app, env MODE: configmap/settings has no key mode",
    "configmap-missing": "deployment/app: container app, envFrom: configmap/settings does not exist",
    "configmap-volume-missing": "deployment/app: volume settings: configmap/settings does not exist",
    "image-digest-missing": f"deployment/app: container app: the registry has no image {REGISTRY}/base/busybox@sha256:",
    "image-missing-daemon-set": f"daemonset/app: container app: the registry has no image {REGISTRY}/base/none:1",
    "image-missing-in-update": f"deployment/app: container app: the registry has no image {REGISTRY}/base/none:2",
    "image-missing-job": f"job/app: container app: the registry has no image {REGISTRY}/base/none:1",
    "image-name-invalid": "Base/Busybox:1' is no valid reference",
    "image-name-invalid-stateful-set": "'busybox::1' is no valid reference",
    "image-of-init-missing": "deployment/app: init container setup: the registry has no image",
    "image-of-sidecar-missing": "deployment/app: container sidecar: the registry has no image",
    "image-tag-missing": "deployment/app: container app: the registry has no image",
    "limit-range": "deployment/app: the cluster would refuse its pods: maximum memory usage per Container is 32Mi",
    "pod-security": "deployment/app: the cluster would refuse its pods: violates PodSecurity",
    "pod-security-daemon-set": "daemonset/app: the cluster would refuse its pods: violates PodSecurity",
    "port-name-missing": "service/app: targetPort 'web'",
    "quota-exceeded": "deployment/app: its pods need 2 of pods, and resourcequota/small allows 1",
    "quota-needs-limits": "deployment/app: the cluster would refuse its pods: failed quota: limits: must specify",
    "replica-set-refused": "deployment/app: resourcequota/none allows no ReplicaSet",
    "run-as-root-refused": "deployment/app: container app: it must not run as root",
    "secret-missing": "deployment/app: container app, env PASSWORD: secret/password does not exist",
    "secret-volume-missing": "deployment/app: volume password: secret/password does not exist",
    "service-account-missing": "deployment/app: serviceAccountName: serviceaccount/app does not exist",
    "service-selects-nothing": "service/app: selector app=shop matches neither a pod template",
}
"""The failing rollouts that are stopped before the first write, and what is said."""
WARNED = {
    "claim-unbound": "storageclass/none does not exist",
    "policy-denies": "every pod needs a team label",
    "unschedulable-selector": "nodeSelector disk=fast",
    "webhook-unreachable": "failed calling webhook",
}
"""Those that are certain to nobody before the rollout, and what is said."""
GOOD = (
    *("daemon-set-update", "job-in-parallel", "native-sidecar", "node-late", "rolling-update", "scaled-to-zero"),
    *("service-with-endpoints", "stateful-set", "stateful-set-partition"),
)


class Stage:
    """A scenario's namespace with the objects that exist before it, as long as the block runs."""

    def __init__(self, cluster: Cluster, name: str, namespace: str) -> None:
        text = (SCENARIOS / f"{name}.yaml").read_text()
        values = {"NAMESPACE": namespace, "NODE": f"{namespace}-node", "REGISTRY": REGISTRY}
        filled = re.sub(rf"\$({'|'.join(values)})\b", lambda match: values[match[1]], text)
        header, *manifests = yaml.safe_load_all(filled)
        self.cluster, self.namespace = cluster, namespace
        self.objects: Sequence[Object] = [self._placed(item) for item in manifests]
        self._existing = [self._placed(item) for item in header.get("existing", ())]

    async def __aenter__(self) -> Self:
        await self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        while await self.cluster.get(Ref("v1", "ServiceAccount", self.namespace, "default")) is None:
            await asyncio.sleep(0.1)
        for item in self._existing:
            await self.cluster.apply(item, force=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        for item in self._existing:
            await self.cluster.delete(Ref.of(item))
        await self.cluster.delete(Ref("v1", "Namespace", "", self.namespace))

    async def check(self, wanted: str) -> list[Unmet]:
        """What is missing, once the server knows the quotas and policies of the namespace, which takes a moment."""
        environment = Environment(name="staging", namespace=self.namespace, manifests="k8s")
        target = Target(application="shop", environment=environment)
        for _ in range(50):
            found = await check_requirements(self.cluster, target, self.objects, (), f"{REGISTRY}/test/hello")
            if not self._existing or any(wanted in _text(unmet) for unmet in found):
                break
            await asyncio.sleep(0.2)
        return list(found)

    def _placed(self, item: Object) -> Object:
        if item["kind"] == "Namespace" or item["apiVersion"].startswith("admissionregistration"):
            return item
        return {**item, "metadata": {"namespace": self.namespace, **item["metadata"]}}


def _text(unmet: Unmet) -> str:
    return f"{unmet.where}: {unmet.summary}"


async def test_i9_of_the_failing_rollouts_those_that_lack_something_are_never_applied() -> None:
    texts = {**STOPPED, **WARNED, **dict.fromkeys(GOOD, "")}
    found: dict[str, list[Unmet]] = {}
    slots = asyncio.Semaphore(8)

    async def play(cluster: Cluster, name: str) -> None:
        async with slots, Stage(cluster, name, f"t-needs-{os.getpid()}-{name}"[:63]) as stage:
            found[name] = await stage.check(texts[name])

    async with connect(ClusterAccess()) as cluster:
        await asyncio.gather(*(play(cluster, name) for name in texts))

    def texts_of(name: str, *, certain: bool) -> str:
        return "\n".join(_text(unmet) for unmet in found[name] if unmet.certain == certain)

    assert len(STOPPED) >= 20
    for name, text in STOPPED.items():
        assert text in texts_of(name, certain=True), name
    for name, text in WARNED.items():
        assert text in texts_of(name, certain=False), name
    for name in (*WARNED, *GOOD):
        assert texts_of(name, certain=True) == "", name
