"""Fixtures for tests of the core on a real cluster: a namespace each, and tests that are coroutines."""

import asyncio
import gc
import inspect
import subprocess
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record, State
from prefect_cd.kube.objects import Object

Kubectl = Callable[..., str]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    gc.collect()  # a connection that was not closed is this test's fault, and not a later one's
    return True


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """The output of kubectl; if it fails, so does the test, with its error message."""

    def run(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False, input=stdin)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"h-core-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
def no_namespace(kubectl: Kubectl) -> Iterator[str]:
    """The name of a namespace that does not exist yet, and that is removed if the test makes it."""
    name = f"h-core-{uuid.uuid4().hex[:8]}"
    yield name
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found", check=False)


@pytest.fixture(scope="session")
def make_objects() -> type["Objects"]:
    """Small objects to apply."""
    return Objects


@pytest.fixture
def objects(make_objects: type["Objects"]) -> type["Objects"]:
    """Small objects to apply."""
    return make_objects


@pytest.fixture
def record() -> Callable[..., Record]:
    """A record of an environment that has not been started."""

    def make(where: Ownership, *objects: Object, **given: Any) -> Record:  # noqa: ANN401
        fields: dict[str, Any] = {
            "number": 0,
            "application": where.application,
            "environment": where.environment,
            "state": State.PREPARED,
            "release_id": "aaaaaaa-11111111",
            "release_hash": "h",
            "commit": None,
            "image": None,
            "objects": objects,
            "started_at": datetime(2026, 1, 1, tzinfo=timezone.utc),
        }
        return Record(**{**fields, **given})

    return make


class Objects:
    """Small objects, as a commit would write them."""

    @staticmethod
    def config_map(namespace: str, name: str = "shop", **data: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}

    @staticmethod
    def cluster_role(name: str) -> dict[str, Any]:
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        }

    @staticmethod
    def service(namespace: str, name: str = "shop", kind: str = "ClusterIP", port: int = 80) -> dict[str, Any]:
        ports = [{"name": "web", "port": port, "targetPort": 8000}]
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": kind, "selector": {"app": name}, "ports": ports},
        }

    @staticmethod
    def deployment(
        namespace: str, image: str, *command: str, name: str = "shop", replicas: int = 1, **container: object
    ) -> dict[str, Any]:
        requests = {"cpu": "10m", "memory": "16Mi"}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "terminationGracePeriodSeconds": 1,
                        "containers": [
                            {
                                "name": "main",
                                "image": image,
                                **({"command": list(command)} if command else {}),
                                "resources": {"requests": requests},
                                **container,
                            }
                        ],
                    },
                },
            },
        }
