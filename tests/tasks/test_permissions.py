"""No stage sends a request for which the Role of `prefect-cd rbac` has no verb."""

import re
from collections.abc import Callable
from typing import Any

from prefect_cd.environment.permissions import permissions
from prefect_cd.errors import RolledBack
from prefect_cd.kube.builtin import builtin_kind
from prefect_cd.pipeline.models import Gate, HttpCheck
from prefect_cd.tasks.deployment import deploy, rollback
from prefect_cd.tasks.target import Target
from tests.tasks.conftest import Run
from tests.tasks.examples import config_map, pipeline, release, service
from tests.unit.fake_api import FakeApi

KINDS = [kind for name in ("ConfigMap", "Service") if (kind := builtin_kind("v1", name))]
_PATH = re.compile(r"(?:(?P<group>[a-z.0-9]+)/)?v\d+/(?:namespaces/[^/]+/)?(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?")
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_FOR_EVERYBODY = {"selfsubjectaccessreviews"}


def verb_of(path: str, query: dict[str, str]) -> str | None:
    """The verb of a request and its resource, as in a Role; None for what everybody may do, such as discovery."""
    match = _PATH.fullmatch(path)
    if not match or match["resource"] in _FOR_EVERYBODY:
        return None
    read = "get" if match["name"] else "watch" if "watch" in query else "list"
    verb = _VERBS.get(query.get("method", ""), read)
    return f"{verb} {match['resource']}" + (f".{match['group']}" if match["group"] else "")


def test_releases_and_rollbacks_send_no_other_requests(
    target: Target, api: FakeApi, run: Callable[[Callable[[], Any]], Run]
) -> None:
    url = f"http://127.0.0.1:{api.port}"
    check = HttpCheck(path="/api/v1/namespaces/shop/configmaps/shop", contains='"greeting": "hello"')
    shown = target.environment.model_copy(update={"url": url, "gates": (Gate(name="smoke", http=check),)})
    settings, there = pipeline(shown), target.model_copy(update={"environment": shown})

    def story() -> None:
        deploy(settings, there, release(config_map(greeting="hello"), config_map("old"), service()))
        deploy(settings, there, release(config_map(greeting="hello", more="yes"), service()))
        try:
            deploy(settings, there, release(config_map(greeting="good day"), config_map("new")))
        except RolledBack:
            rollback(settings, there)

    _ = run(story).result
    sent = {verb for request in api.requests if (verb := verb_of(*request))}
    allowed = {str(permission) for permission in permissions(KINDS, shown)}
    assert sent - allowed == set()
    assert {"patch configmaps", "delete services", "delete configmaps", "update leases.coordination.k8s.io"} <= sent
