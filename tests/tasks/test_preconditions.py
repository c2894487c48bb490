"""What is known to be wrong before anything is built or written anywhere."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_cd.environment.permissions import Permission, permissions
from prefect_cd.environment.record import State
from prefect_cd.errors import ClusterUnreachable, Forbidden, Invalid, InvalidManifest, MissingSuite, MissingTool
from prefect_cd.kube.builtin import builtin_kind
from prefect_cd.pipeline.models import Approval, Check, ClusterAccess, Environment, Gate, HttpCheck, Pipeline
from prefect_cd.release.image import Builder
from prefect_cd.release.model import BuiltImage
from prefect_cd.tasks import preconditions
from prefect_cd.tasks.changes import plan
from prefect_cd.tasks.connection import CONNECTIONS
from prefect_cd.tasks.preconditions import Preflight, preflight, read_manifests
from prefect_cd.tasks.record import record_outcome, record_start
from prefect_cd.tasks.target import Target
from tests.tasks import examples
from tests.tasks.examples import (
    GitRepository,
    as_yaml,
    config_map,
    deployment,
    image,
    pipeline,
    release,
    service,
    verified,
)
from tests.unit.fake_api import FakeApi

BUILDER = Builder("buildah", "apt-get install buildah", containers_tools=True)
FILES = {"k8s/shop.yaml": as_yaml(deployment(), config_map(greeting="hello"))}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Callable[[BuiltImage | None], None]:
    """Sets what the registry has; by default it lacks the image, which buildah can build."""

    def has(image: BuiltImage | None) -> None:
        monkeypatch.setattr(preconditions, "find_image", lambda *_: image)

    has(None)
    monkeypatch.setattr(preconditions, "choose_builder", lambda _: BUILDER)
    return has


@pytest.fixture(autouse=True)
def _without_a_registry(registry: object) -> None:
    assert registry


@pytest.fixture
def play(repository: GitRepository, environment: Environment) -> Callable[..., Preflight]:
    """Preflight of a commit with these files, in these environments."""

    def check(files: dict[str, str] = FILES, *environments: Environment, **settings: Any) -> Preflight:  # noqa: ANN401
        whole = pipeline(*(environments or (environment,)), repository=repository.path)
        return preflight.fn(whole.model_copy(update=settings), repository.commit(files))

    return check


def with_settings(environment: Environment, **settings: Any) -> Environment:  # noqa: ANN401
    return environment.model_copy(update=settings)


def test_every_environments_objects_are_read_with_the_line_that_they_stand_in(
    repository: GitRepository, environment: Environment
) -> None:
    repository.commit(FILES)
    manifests = read_manifests(pipeline(environment, repository=repository.path), repository.path)["staging"]
    assert [manifest.item for manifest in manifests] == [deployment(), config_map(greeting="hello")]
    assert [manifest.where for manifest in manifests] == ["k8s/shop.yaml:1", "k8s/shop.yaml:18"]


def test_i9_a_good_commit_passes_and_nothing_is_written(play: Callable[..., Preflight], api: FakeApi) -> None:
    checked = play()
    assert (checked.image, checked.builder) == (None, "buildah")
    assert len(checked.digest) == 64
    assert api.writes == []
    assert dry_runs(api) == {"configmaps/shop", "deployments/shop", "pods/shop-prefect-cd-dry-run"}


def dry_runs(api: FakeApi) -> set[str]:
    return {query["target"] for _, query in api.requests if "dryRun" in query}


def test_where_the_registry_has_the_image_no_builder_is_needed(
    play: Callable[..., Preflight],
    registry: Callable[[BuiltImage | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry(image(built=False))
    monkeypatch.setattr(preconditions, "choose_builder", lambda _: pytest.fail("a builder was looked for"))
    checked = play()
    assert (checked.image, checked.builder) == (image(built=False), None)


def test_i9_without_a_builder_nothing_else_is_tried(
    play: Callable[..., Preflight], api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(_: object) -> Builder:
        raise MissingTool("no image can be built here")

    monkeypatch.setattr(preconditions, "choose_builder", choose)
    with pytest.raises(MissingTool, match="no image can be built here"):
        play()
    assert api.requests == []


def test_i9_missing_permissions_are_listed_all_at_once(play: Callable[..., Preflight], api: FakeApi) -> None:
    api.denied = {("patch", "deployments"), ("get", "pods/log"), ("create", "leases")}
    with pytest.raises(Forbidden) as caught:
        play()
    assert caught.value.reason == (
        "we may not get pods/log, patch deployments.apps, create leases.coordination.k8s.io in namespace shop"
    )
    assert caught.value.where.startswith("environment staging, http://127.0.0.1:")
    assert "prefect-cd rbac" in caught.value.hint


KINDS = [kind for name in ("ConfigMap", "Service") if (kind := builtin_kind("v1", name))]
KINDS += [kind for kind in [builtin_kind("apps/v1", "Deployment")] if kind]
SMOKE = Gate(name="smoke", http=HttpCheck())
NEEDED = permissions(KINDS, examples.environment(gates=(SMOKE,), url="service/shop"))


@pytest.mark.parametrize("permission", NEEDED, ids=str)
def test_i9_each_missing_permission_is_named_before_anything_is_written(
    play: Callable[..., Preflight],
    environment: Environment,
    api: FakeApi,
    caplog: pytest.LogCaptureFixture,
    permission: Permission,
) -> None:
    api.denied = {(permission.verb, permission.resource)}
    files = {"k8s/shop.yaml": as_yaml(deployment(), config_map(greeting="hello"), service())}
    wanted = with_settings(environment, gates=(SMOKE,), url="service/shop")
    if permission.required:
        with pytest.raises(Forbidden) as caught:
            play(files, wanted)
        assert caught.value.reason == f"we may not {permission} in namespace shop"
    else:
        play(files, wanted)
        assert f"staging: we may not {permission} (for: {permission.purpose})" in caplog.text
    assert api.writes == []


# --- credentials of one environment that reach another ---------------------------------------------------------------


def access_of(api: FakeApi, folder: Path, name: str) -> ClusterAccess:
    """Access with credentials that reach the namespace `name` only."""
    api.tokens[name] = name
    kubeconfig = folder / f"kubeconfig-{name}"
    kubeconfig.write_text(yaml.safe_dump({**api.kubeconfig, "users": [{"name": "u", "user": {"token": name}}]}))
    return ClusterAccess(kubeconfig=str(kubeconfig))


PRODUCTION: dict[str, Any] = {"name": "production", "namespace": "shop-production", "manifests": "k8s"}
REACH = "its credentials may write Secrets in namespace shop-production of production, which needs an approval"


def test_credentials_of_staging_that_can_forge_records_of_production_are_warned_of(
    play: Callable[..., Preflight], environment: Environment, access: ClusterAccess, caplog: pytest.LogCaptureFixture
) -> None:
    production = examples.environment(**PRODUCTION, cluster=access, approval=Approval())
    play(FILES, environment, production)
    assert f"staging: {REACH}" in caplog.text
    assert "production: its credentials" not in caplog.text


@pytest.mark.parametrize("allowed", ["create", "patch"])
def test_one_verb_is_enough_to_forge_a_record(
    environment: Environment, access: ClusterAccess, api: FakeApi, caplog: pytest.LogCaptureFixture, allowed: str
) -> None:
    api.denied = {(verb, "secrets") for verb in ("create", "patch") if verb != allowed}
    production = examples.environment(**PRODUCTION, cluster=access, approval=Approval())
    staging, other = (Target(application="shop", environment=item) for item in (environment, production))
    staging.run(lambda cluster: preconditions._warn_of_reach(cluster, staging, other))
    assert f"staging: {REACH}" in caplog.text


def test_credentials_of_their_own_are_not_warned_of(
    play: Callable[..., Preflight], api: FakeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.put("namespaces", "shop-production")
    staging = examples.environment(cluster=access_of(api, tmp_path, "shop"))
    own = access_of(api, tmp_path, "shop-production")
    play(FILES, staging, examples.environment(**PRODUCTION, cluster=own, approval=Approval()))
    assert "its credentials may write" not in caplog.text


def test_an_environment_of_another_cluster_or_without_an_approval_is_not_warned_of(
    play: Callable[..., Preflight],
    environment: Environment,
    access: ClusterAccess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    play(FILES, environment, examples.environment(**PRODUCTION, cluster=access))
    another = FakeApi()
    another.put("namespaces", "shop-production")
    with another.serving():
        (tmp_path / "another").write_text(yaml.safe_dump(another.kubeconfig))
        elsewhere = ClusterAccess(kubeconfig=str(tmp_path / "another"))
        play(FILES, environment, examples.environment(**PRODUCTION, cluster=elsewhere, approval=Approval()))
        CONNECTIONS.close()
    assert "its credentials may write" not in caplog.text


def test_records_that_are_not_signed_are_said_to_be_so_where_an_approval_is_needed(
    play: Callable[..., Preflight], environment: Environment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    play()
    assert "not signed" not in caplog.text
    play(FILES, with_settings(environment, approval=Approval()))
    assert "staging: its records are not signed (record_key in the pipeline file)" in caplog.text
    caplog.clear()
    (tmp_path / "key").write_text("k" * 32)
    play(FILES, with_settings(environment, approval=Approval(), record_key=str(tmp_path / "key")))
    assert "not signed" not in caplog.text


def test_i9_a_key_that_is_not_there_is_named_before_anything_is_written(
    play: Callable[..., Preflight], environment: Environment, api: FakeApi, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match="the key of the records cannot be read: No such file"):
        play(FILES, with_settings(environment, record_key=str(tmp_path / "missing")))
    assert api.requests == []


def test_i9_with_all_permissions_nothing_is_warned_of(
    play: Callable[..., Preflight], caplog: pytest.LogCaptureFixture
) -> None:
    play()
    assert "we may not" not in caplog.text


def test_i9_what_the_next_release_may_have_to_remove_needs_a_permission_too(
    play: Callable[..., Preflight],
    target: Target,
    api: FakeApi,
    lock: Any,  # noqa: ANN401
) -> None:
    before = plan.fn(target, release(service("old")))
    started = record_start.fn(before, lock).record
    record_outcome.fn(target, verified(target, started, lock), State.KNOWN_GOOD, lock)
    api.denied = {("delete", "services")}
    with pytest.raises(Forbidden, match="we may not delete services in namespace shop"):
        play()


def test_i9_only_an_environment_whose_gates_use_a_service_needs_to_find_it(
    play: Callable[..., Preflight], environment: Environment, api: FakeApi
) -> None:
    api.denied = {("get", "services"), ("list", "endpointslices")}
    assert play().builder == "buildah"
    play(FILES, with_settings(environment, gates=(SMOKE,), url="https://shop.example.org"))
    with pytest.raises(Forbidden, match=r"get services, list endpointslices\.discovery\.k8s\.io"):
        play(FILES, with_settings(environment, gates=(SMOKE,), url="service/shop"))


def test_i9_what_the_server_would_refuse_names_the_line_of_the_commit(
    play: Callable[..., Preflight], api: FakeApi
) -> None:
    api.admission_error = "admission webhook denied the request: no limits"
    with pytest.raises(InvalidManifest, match="no limits") as caught:
        play({"k8s/shop.yaml": as_yaml(deployment())})
    assert caught.value.where == "k8s/shop.yaml:1: deployment/shop"


def test_i9_of_several_environments_the_first_ones_mistake_is_the_result(
    play: Callable[..., Preflight], environment: Environment
) -> None:
    files = {
        "k8s/one/shop.yaml": as_yaml(deployment(), {**config_map(), "kind": "Basket"}),
        "k8s/two/shop.yaml": as_yaml(deployment(), {**config_map(), "kind": "Bucket"}),
    }
    environments = [
        with_settings(environment, manifests="k8s/one"),
        with_settings(environment, name="production", namespace="live", manifests="k8s/two"),
    ]
    with pytest.raises(InvalidManifest, match="no kind Basket"):
        play(files, *environments)
    with pytest.raises(InvalidManifest, match="no kind Bucket"):
        play(files, *reversed(environments))


def test_i9_manifests_without_the_pipelines_image_are_refused_before_any_cluster_is_asked(
    play: Callable[..., Preflight], api: FakeApi
) -> None:
    with pytest.raises(InvalidManifest, match="no container uses the image"):
        play({"k8s/shop.yaml": as_yaml(config_map())})
    assert api.requests == []


def test_i9_a_suite_that_the_commit_lacks_is_named(
    play: Callable[..., Preflight], environment: Environment, api: FakeApi
) -> None:
    with pytest.raises(MissingSuite, match="unit tests: the commit has no tests"):
        play(checks=(Check(name="unit tests", run=["pytest"], directory="tests"),))
    e2e = Gate(name="E2E", browser="tests/e2e")
    with pytest.raises(MissingSuite, match="E2E: the commit has no tests/e2e"):
        play(FILES, with_settings(environment, gates=(e2e,), url="https://shop.example.org"))
    assert api.requests == []


def test_i9_a_browser_that_is_not_installed_is_missed_before_the_release(
    play: Callable[..., Preflight], environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find() -> None:
        raise MissingTool("there is no Chrome or Chromium on this machine")

    monkeypatch.setattr(preconditions, "find_browser", find)
    e2e = Gate(name="E2E", browser="tests/e2e")
    with pytest.raises(MissingTool, match="no Chrome or Chromium"):
        play(
            {**FILES, "tests/e2e/test_shop.py": ""},
            with_settings(environment, gates=(e2e,), url="https://shop.example.org"),
        )


def test_a_cluster_that_does_not_answer_is_errored_soon(
    play: Callable[..., Preflight], api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, "_PATIENCE", timedelta(milliseconds=1))
    api.write_errors = [503] * 9
    with pytest.raises(ClusterUnreachable, match="status 503"):
        play()
    assert preflight.retries == 3


def test_i10_what_an_earlier_stage_changed_in_the_checkout_is_not_read(
    repository: GitRepository,
    environment: Environment,
    home: Any,  # noqa: ANN401
) -> None:
    settings: Pipeline = pipeline(environment, repository=repository.path)
    commit = repository.commit(FILES)
    checked = preflight.fn(settings, commit)
    manifest = home / commit.sha[:12] / "k8s" / "shop.yaml"
    manifest.write_text(as_yaml(deployment(reference="example.org/mine")))
    assert preflight.fn(settings, commit) == checked
