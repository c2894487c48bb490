"""Somebody who may write Secrets in one environment's namespace, such as its pods, forges records.

The attacker writes to the API server itself. What the operator's commands do next is looked at by what they write.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cd.deployments.cli import main
from prefect_cd.environment.journal import Damage
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record, State
from prefect_cd.environment.record_format import (
    HEAD,
    SIGNATURE,
    Head,
    decode,
    encode,
    epoch_of,
    part_names,
    read_entry,
    read_head,
    sealed,
)
from prefect_cd.environment.record_key import RecordKey, load_record_key
from prefect_cd.environment.records import RecordStore
from prefect_cd.errors import Invalid
from prefect_cd.kube.client import connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.objects import Object
from tests.records import record
from tests.unit.fake_api import FakeApi

STAGING = Ownership("shop", "staging", "shop-staging")
KEY = "5" * 64


def config_map(name: str, namespace: str = "shop-staging", **data: str) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return STAGING.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def cluster_role(**metadata: object) -> Object:
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "mine", **metadata},
        "rules": rules,
    }


def put(api: FakeApi, item: Object) -> None:
    """Write an object past prefect-cd."""
    parts = {key: value for key, value in item.items() if key not in {"apiVersion", "kind", "metadata"}}
    plural = {"Secret": "secrets", "ConfigMap": "configmaps"}[item["kind"]]
    name = item["metadata"]["name"]
    api.put(plural, name, metadata={**item["metadata"]}, **parts)


def forge(api: FakeApi, *records: Record) -> None:
    """Write records as only prefect-cd should: anybody can compute their checksums."""
    for item in records:
        put(api, encode(STAGING, item, 1)[0])


def pipeline_file(folder: Path, api: FakeApi, staging: str = "", approval: str = "approval: {}") -> Path:
    (folder / "kubeconfig").write_text(json.dumps(api.kubeconfig))
    file = folder / "pipeline.yaml"
    file.write_text(
        f"""
application: shop
source: {{repository: https://git.example.com/acme/shop.git}}
image: {{name: registry.example.com/acme/shop}}
environments:
  - {{name: staging, namespace: shop-staging, manifests: k8s/staging, cluster: {{kubeconfig: kubeconfig}}{staging}}}
  - {{name: production, namespace: shop, manifests: k8s/production, cluster: {{kubeconfig: kubeconfig}}, {approval}}}
"""
    )
    return file


def run(api: FakeApi, folder: Path, *command: str, staging: str = "") -> int:
    with api.serving():
        name, *others = command
        return main([name, str(pipeline_file(folder, api, staging)), *others])


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi()
    api.put("namespaces", "shop")
    api.put("namespaces", "shop-staging")
    return api


# --- a record of one environment that reaches another ----------------------------------------------------------------

FORGED = {
    "another namespace": (config_map("settings", "shop", price="0"), "is in namespace 'shop'"),
    "a ClusterRole": (STAGING.label(cluster_role()), "is cluster-scoped, and the pipeline file does not allow this"),
    "a ClusterRole in a namespace": (STAGING.label(cluster_role(namespace="shop-staging")), "is cluster-scoped"),
    "another Namespace": (
        STAGING.label({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        "is cluster-scoped",
    ),
    "its own Namespace, privileged": (
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": "shop-staging",
                "labels": {**STAGING.labels, "pod-security.kubernetes.io/enforce": "privileged"},
            },
        },
        "sets pod-security.kubernetes.io/enforce",
    ),
    "no namespace": (STAGING.label({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}), "in no name"),
    "another record": (
        encode(STAGING, record(9, State.KNOWN_GOOD), 1)[0],
        "has the name of a record or lock of prefect-cd",
    ),
    "no object": ({"kind": "ConfigMap"}, "no apiVersion"),
    "a map as a name": ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": {}}}, "without metadata.name"),
}


@pytest.mark.parametrize("name", FORGED)
def test_recover_applies_nothing_that_a_commit_could_not(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    item, problem = FORGED[name]
    forge(api, record(1, State.KNOWN_GOOD, item), record(2, State.APPLYING))
    assert run(api, tmp_path, "recover", "staging") != 0
    assert problem in capsys.readouterr().out
    assert api.writes == []


@pytest.mark.parametrize("field", ["objects", "replaced"])
def test_nothing_of_an_interrupted_forged_release_is_touched(api: FakeApi, tmp_path: Path, field: str) -> None:
    """Recovery gives what an interrupted rollout may write another version, before anything else."""
    production = config_map("settings", "shop", price="1")
    put(api, production)
    forge(api, record(1, State.KNOWN_GOOD), record(2, State.APPLYING, **{field: (production,)}))
    assert run(api, tmp_path, "recover", "staging") != 0
    assert api.writes == []


def test_nothing_in_another_namespace_is_pruned(api: FakeApi, tmp_path: Path) -> None:
    production = config_map("settings", "shop", price="1")
    put(api, production)
    known = [("v1", "ConfigMap", "shop", "settings")]
    refs = [dict(zip(("api_version", "kind", "namespace", "name"), ref, strict=True)) for ref in known]
    forge(api, record(1, State.KNOWN_GOOD), record(2, State.APPLYING, known=refs))
    assert run(api, tmp_path, "recover", "staging") != 0
    assert api.writes == []


def test_what_the_pipeline_file_allows_now_comes_back(api: FakeApi, tmp_path: Path) -> None:
    forge(api, record(1, State.KNOWN_GOOD, STAGING.label(cluster_role())), record(2, State.APPLYING))
    assert run(api, tmp_path, "recover", "staging", staging=", cluster_scoped: [ClusterRole]") == 0
    assert "mine" in api.objects["clusterroles"]


# --- Secrets that only look like records -----------------------------------------------------------------------------


def labelled(name: str, kind: str = "Opaque", **metadata: object) -> Object:
    labels = {**STAGING.labels, "prefect-cd.dev/record": "release"}
    where = {"name": name, "namespace": "shop-staging", "labels": labels, **metadata}
    return {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": where}


ABSURD = {
    "any name": labelled("keys"),
    "the name of a later record": labelled("prefect-cd.shop.3"),
    "the name of an earlier record": labelled("prefect-cd.shop.1"),
    "a number without end": labelled("prefect-cd.shop." + "9" * 200, "prefect-cd.dev/record.v2"),
    "an epoch without end": labelled("keys", annotations={"prefect-cd.dev/epoch": "9" * 5000}),
    "an epoch that no Lease can count": labelled("keys", annotations={"prefect-cd.dev/epoch": str(2**31)}),
    "a head without end": labelled("prefect-cd.shop.3", annotations={HEAD: "[" * 100_000}),
    "a head that is a number without end": labelled("prefect-cd.shop.3", annotations={HEAD: "9" * 5000}),
    "a part": labelled("x", labels={**STAGING.labels, "prefect-cd.dev/record": "part"}),
    "labels of format 1": labelled(
        "prefect-cd.shop.3",
        labels={
            **labelled("x")["metadata"]["labels"],
            "prefect-cd.dev/number": "3",
            "prefect-cd.dev/state": "x",
            "prefect-cd.dev/release-id": "a",
        },
    ),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_secret_with_our_label_stops_nothing(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """It is named, and recovery goes on beside it."""
    fake = ABSURD[name]
    forge(api, record(2, State.KNOWN_GOOD, config_map("settings")), record(4, State.APPLYING))
    put(api, fake)
    assert run(api, tmp_path, "recover", "staging") == 0
    assert "shop-staging/settings" in api.objects["configmaps"]
    if name != "a part":
        assert f"secret/{fake['metadata']['name']}" in capsys.readouterr().out
    assert f"shop-staging/{fake['metadata']['name']}" in api.objects["secrets"]


def with_store(api: FakeApi, work: Callable[[RecordStore], Any], ownership: Ownership = STAGING) -> Any:  # noqa: ANN401
    """What a coroutine returns that works with the records of the environment."""

    async def connected() -> object:
        async with connect(LoadedKubeconfig(api.kubeconfig)) as cluster:
            return await work(RecordStore(cluster, ownership, 5))

    with api.serving():
        return asyncio.run(connected())


def test_a_foreign_secret_takes_a_name_and_nothing_else(api: FakeApi) -> None:
    """The next record gets the number after it, and old records are deleted without it."""
    for number in range(1, 13):
        forge(api, record(number, State.KNOWN_GOOD))
    put(api, labelled("prefect-cd.shop.13"))
    put(api, labelled("copy.1"))

    async def work(store: RecordStore) -> Record:
        started = await store.start(record(0, State.VERIFYING))
        return await store.move(started, State.KNOWN_GOOD)

    assert with_store(api, work).number == 14
    names = {name.removeprefix("shop-staging/") for name in api.objects["secrets"]}
    assert {"prefect-cd.shop.13", "prefect-cd.shop.14", "copy.1"} <= names
    assert "prefect-cd.shop.1" not in names


def test_a_secret_of_another_type_that_says_it_is_known_good_stops_the_environment(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the record behind it, nobody knows what to go back to: going back to nothing would remove everything."""
    fake = encode(STAGING, record(1, State.KNOWN_GOOD), 1)[0]
    put(api, {**fake, "type": "Opaque"})
    forge(api, record(2, State.APPLYING))
    assert run(api, tmp_path, "recover", "staging") != 0
    assert "prefect-cd did not write it" in capsys.readouterr().out
    assert api.writes == []


# --- the key ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(tmp_path: Path) -> Ownership:
    (tmp_path / "key").write_text(f"{KEY}\n")
    return Ownership("shop", "staging", "shop-staging", record_key=str(tmp_path / "key"))


SIGNED = ", record_key: key"


def stored(api: FakeApi, number: int) -> Object:
    return api.objects["secrets"][f"shop-staging/prefect-cd.shop.{number}"]


async def _releases(store: RecordStore) -> None:
    """A good release, and one that was interrupted."""
    good = await store.start(record(0, State.VERIFYING, config_map("settings", greeting="genuine")))
    await store.move(good, State.KNOWN_GOOD)
    await store.start(record(0, State.APPLYING))


def _with_head(secret: Object, **annotations: str) -> Object:
    metadata = secret["metadata"]
    return {**secret, "metadata": {**metadata, "annotations": {**metadata["annotations"], **annotations}}}


def _forged_from(genuine: Object) -> Object:
    """Another content under the signature of the genuine one."""
    forged = encode(STAGING, record(1, State.KNOWN_GOOD, config_map("settings", greeting="forged")), 5, genuine)[0]
    return _with_head(forged, **{SIGNATURE: genuine["metadata"]["annotations"][SIGNATURE]})


def _unsigned(genuine: Object) -> Object:
    forged = _forged_from(genuine)
    del forged["metadata"]["annotations"][SIGNATURE]
    return forged


def _signed_with_another_key(genuine: Object) -> Object:
    forged = record(1, State.KNOWN_GOOD, config_map("settings", greeting="forged"))
    return encode(STAGING, forged, 5, genuine, RecordKey((b"6" * 64,)))[0]


@pytest.mark.parametrize(
    ("forgery", "problem"),
    [
        (_forged_from, "was changed after it was signed"),
        (_unsigned, "it is not signed"),
        (_signed_with_another_key, "signed with another key"),
    ],
)
def test_with_a_key_a_forged_known_good_is_not_restored(
    api: FakeApi,
    signed: Ownership,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    forgery: Callable[[Object], Object],
    problem: str,
) -> None:
    with_store(api, _releases, signed)
    before = len(api.writes)
    put(api, forgery(stored(api, 1)))
    assert run(api, tmp_path, "recover", "staging", staging=SIGNED) != 0
    printed = capsys.readouterr().out
    assert problem in printed
    assert "secret/prefect-cd.shop.1" in printed
    assert api.writes[before:] == []


def test_with_a_key_a_record_of_another_place_is_none(api: FakeApi, signed: Ownership) -> None:
    """A genuine record of one environment is copied into the namespace of another one of the same name."""
    with_store(api, _releases, signed)
    elsewhere = Ownership("shop", "staging", "elsewhere", record_key=signed.record_key)
    copied = {**stored(api, 1), "metadata": {**stored(api, 1)["metadata"], "namespace": "elsewhere"}}
    damage = decode(elsewhere, copied, key=load_record_key(signed.record_key))
    assert isinstance(damage, Damage)
    assert "was changed after it was signed" in damage.problem


def test_with_a_key_genuine_records_are_restored(api: FakeApi, signed: Ownership, tmp_path: Path) -> None:
    with_store(api, _releases, signed)
    assert run(api, tmp_path, "recover", "staging", staging=SIGNED) == 0
    assert api.objects["configmaps"]["shop-staging/settings"]["data"] == {"greeting": "genuine"}


def test_a_key_can_be_replaced(api: FakeApi, signed: Ownership, tmp_path: Path) -> None:
    with_store(api, _releases, signed)
    (tmp_path / "key").write_text(f"{'7' * 64}\n{KEY}\n")
    assert run(api, tmp_path, "recover", "staging", staging=SIGNED) == 0
    (tmp_path / "key").write_text(f"{'7' * 64}\n")
    _, damage = read_entry(signed, stored(api, 2), (), load_record_key(signed.record_key))
    assert damage is None


def test_parts_that_an_attacker_names_are_not_signed(signed: Ownership) -> None:
    """A large record keeps its parts when it moves: those of a head that is not signed may be anything."""
    key = load_record_key(signed.record_key)
    assert key
    forged = encode(signed, record(1, State.APPLYING), 5)[0]
    head = read_head(forged)
    assert isinstance(head, Head)
    live = _with_head(forged, **{HEAD: sealed(head.model_copy(update={"parts": 1, "large": "0" * 64}))})
    assert len(part_names(live)) == 1
    assert part_names(encode(signed, record(1, State.VERIFYING), 5, live, key)[0]) == []


def test_records_from_before_the_key_are_named_until_an_operator_signs_them(
    api: FakeApi, signed: Ownership, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert signed.record_key
    with_store(api, _releases)
    assert run(api, tmp_path, "recover", "staging", staging=SIGNED) != 0
    assert "recover --sign-records FILE ENVIRONMENT" in capsys.readouterr().out
    assert run(api, tmp_path, "recover", "staging", "--sign-records", staging=SIGNED) == 0
    assert "signed  record 1: release-0, known-good" in capsys.readouterr().out
    assert api.objects["configmaps"]["shop-staging/settings"]["data"] == {"greeting": "genuine"}


def test_signing_does_not_adopt_what_another_key_signed_or_what_reaches_elsewhere(
    api: FakeApi, signed: Ownership, tmp_path: Path
) -> None:
    with_store(api, _releases, signed)
    put(api, _signed_with_another_key(stored(api, 1)))
    forge(api, record(3, State.KNOWN_GOOD, config_map("settings", "shop")))
    assert run(api, tmp_path, "recover", "staging", "--sign-records", staging=SIGNED) != 0
    assert SIGNATURE not in stored(api, 3)["metadata"]["annotations"]


def test_records_are_signed_for_one_environment_by_name_and_with_a_key(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(api, tmp_path, "recover", "--sign-records", staging=SIGNED) == 1
    assert "name the environment" in capsys.readouterr().err
    assert run(api, tmp_path, "recover", "production", "--sign-records") == 1
    assert "has no record_key" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "short", f"{KEY}\nshort"])
def test_a_key_that_is_missing_or_short_is_refused_and_not_shown(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(Invalid) as caught:
        load_record_key(str(file))
    assert caught.value.where == str(file)
    assert KEY not in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_missing_key_is_no_permission_to_go_on_without(api: FakeApi, tmp_path: Path) -> None:
    with_store(api, _releases)
    assert run(api, tmp_path, "recover", "staging", staging=SIGNED) != 0
    assert run(api, tmp_path, "status", staging=SIGNED) != 0
    assert "shop-staging/settings" not in api.objects.get("configmaps", {})


@pytest.mark.parametrize("is_signed", [True, False])
def test_the_status_says_whether_records_are_signed(
    api: FakeApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], signed: Ownership, *, is_signed: bool
) -> None:
    ownership = signed if is_signed else STAGING
    with_store(api, _releases, ownership)
    key = f", approval: {{}}{SIGNED if is_signed else ''}"
    run(api, tmp_path, "status", staging=key)
    line = "  records are not signed: what may write Secrets in shop-staging may forge one"
    assert (line in capsys.readouterr().out.splitlines()) != is_signed
    run(api, tmp_path, "status", "-o", "json", staging=key)
    assert json.loads(capsys.readouterr().out)["environments"][0]["records_signed"] == is_signed


# --- whatever a Secret contains --------------------------------------------------------------------------------------

_heads = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
GENUINE = encode(STAGING, record(1, State.KNOWN_GOOD), 1)[0]
GENUINE_HEAD: Object = json.loads(GENUINE["metadata"]["annotations"][HEAD])


@given(
    changes=st.dictionaries(st.sampled_from(sorted(GENUINE_HEAD)), _heads, max_size=3),
    labels=st.dictionaries(st.sampled_from(sorted(GENUINE["metadata"]["labels"])), st.text(max_size=70), max_size=3),
    annotations=st.dictionaries(st.sampled_from([HEAD, SIGNATURE, "prefect-cd.dev/epoch"]), st.text(), max_size=2),
    data=st.none() | st.dictionaries(st.sampled_from(["record", "part", "x"]), st.text(), max_size=2),
    key=st.none() | st.just(RecordKey((KEY.encode(),))),
)
def test_no_secret_raises(
    changes: Object, labels: dict[str, str], annotations: dict[str, str], data: Object | None, key: RecordKey | None
) -> None:
    head = json.dumps({**GENUINE_HEAD, **changes})
    metadata = GENUINE["metadata"]
    secret = {
        **GENUINE,
        "metadata": {
            **metadata,
            "labels": {**metadata["labels"], **labels},
            "annotations": {**metadata["annotations"], HEAD: head, **annotations},
        },
        "data": GENUINE["data"] if data is None else data,
    }
    entry, damage = read_entry(STAGING, secret, (), key)
    assert entry or damage
    assert len(part_names(secret)) <= 16
    assert epoch_of(secret) <= 10**9
    assert decode(STAGING, secret, (), key)
    if key:
        assert entry is None
