"""The versions that are released in tests of crashes: each change that can be left half done is in one of them."""

from datetime import datetime, timedelta, timezone
from typing import Any

from prefect_cd.pipeline.models import (
    ClusterAccess,
    Environment,
    ImageSettings,
    Pipeline,
    RolloutSettings,
    SourceSettings,
)
from prefect_cd.release.model import BuiltImage, Commit, Release

Object = dict[str, Any]
IMAGE = "registry.invalid/shop"
AT_ONCE = RolloutSettings(settle=timedelta(), timeout=timedelta(seconds=60))


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(image: str, greeting: str) -> Object:
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": image,
        "command": ["sleep", "3600"],
        "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
        "env": [{"name": "GREETING", "value": greeting}],
    }
    template = {
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}


def old(image: str) -> list[Object]:
    """Version 1."""
    return [config_map("settings", greeting="one", only="old"), config_map("removed", x="1"), deployment(image, "one")]


def new(image: str) -> list[Object]:
    """Version 2: changes two objects, a key goes and a key comes, adds one object, removes one."""
    return [config_map("settings", greeting="two", new="yes"), config_map("added", x="2"), deployment(image, "two")]


def newest(image: str) -> list[Object]:
    """Version 3: changes what version 2 changed, and adds what it added, with other contents."""
    return [config_map("settings", greeting="three"), config_map("added", x="3"), deployment(image, "three")]


def broken(image: str) -> list[Object]:
    """Version 2 with a pod that cannot start: its rollout fails, and the same run goes back."""
    item = deployment(image, "two")
    item["spec"]["template"]["spec"]["containers"][0]["image"] = "Not_Valid:1"
    return [*new(image)[:2], item]


VERSIONS = {"old": old, "new": new, "newest": newest, "broken": broken}
COMMITS = {"old": 0, "new": 1, "broken": 1, "newest": 2}
"""Which commit of the repository a version is of: the first is the oldest."""


def objects(version: str, image: str, *, pods: bool = True) -> list[Object]:
    """The manifests of a version; without those that have pods, a rollout takes no time."""
    return [item for item in VERSIONS[version](image) if pods or item["kind"] != "Deployment"]


def release(objects: list[Object], sha: str, repository: str) -> Release:
    commit = Commit(
        repository=repository,
        sha=sha,
        revision="main",
        subject="A version",
        author="Test Author",
        committed_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
    )
    image = BuiltImage(name=IMAGE, digest=f"sha256:{sha[:1] * 64}", built=False)
    return Release(application="shop", commit=commit, image=image, manifests={"production": tuple(objects)})


def pipeline(kubeconfig: str, namespace: str, repository: str, *, take_over: bool = False) -> Pipeline:
    environment = Environment(
        name="production",
        namespace=namespace,
        manifests="k8s",
        cluster=ClusterAccess(kubeconfig=kubeconfig),
        rollout=AT_ONCE,
        requirement_check="warn",  # `broken` is to fail in its rollout
        take_over=take_over,
    )
    return Pipeline(
        application="shop",
        source=SourceSettings(repository=repository),
        image=ImageSettings(name=IMAGE),
        environments=(environment,),
    )
