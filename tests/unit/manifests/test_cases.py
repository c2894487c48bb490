"""Manifests that other deployment tools read or apply wrongly: each kind of mistake, from its file in `cases`."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.manifests import labels
from prefect_cd.manifests.diff import SERVER_METADATA
from prefect_cd.manifests.labels import label
from prefect_cd.manifests.load import Manifest, load
from prefect_cd.manifests.prepare import encode_string_data, set_namespaces
from prefect_cd.manifests.yaml_reader import read
from prefect_cd.release.model import BuiltImage

CASES = Path(__file__).parent / "cases"
IMAGE = BuiltImage(name="registry.example.org:5000/acme/shop", digest="sha256:" + "a" * 64, built=True)
TAGGED = f"{IMAGE.name}:main"


def case(name: str) -> list[Object]:
    return [manifest.item for manifest in load(CASES / name, CASES)]


def files(top: Path, **texts: str) -> Path:
    """Files below a folder; `__` in a name stands for a slash."""
    for name, text in texts.items():
        path = top / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".yaml").write_text(text)
    return top


# --- labels ----------------------------------------------------------------------------------------------------------


def test_a_label_of_the_manifest_stays_so_that_a_service_finds_its_pod() -> None:
    pod, service = (label(item, "shop", "staging") for item in case("managed-by"))
    selector = service["spec"]["selector"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"][labels.APPLICATION] == "shop"
    assert service["metadata"]["labels"][labels.MANAGED_BY] == labels.MANAGER


# --- cluster-scoped --------------------------------------------------------------------------------------------------


def test_a_cluster_scoped_object_has_no_namespace_as_on_the_server() -> None:
    (role,) = case("cluster-scoped-namespace")
    assert role["metadata"]["namespace"] == "shop"
    kind = (role["apiVersion"], role["kind"])
    (placed,) = set_namespaces([Manifest(role, "k8s/role.yaml:1")], "shop", {kind: False}, ["ClusterRole"])
    assert placed == {**role, "metadata": {"name": "shop-reader"}}
    twice = [Manifest(role, "a.yaml:1"), Manifest(placed, "b.yaml:1")]
    with pytest.raises(InvalidManifest, match=r"already defined in a\.yaml:1"):
        set_namespaces(twice, "shop", {kind: False}, ["ClusterRole"])


# --- copies of live objects ------------------------------------------------------------------------------------------


def test_a_manifest_that_was_exported_from_a_cluster_is_refused_with_the_lines_to_remove() -> None:
    with pytest.raises(InvalidManifest, match="ConfigMap settings was exported from a cluster") as caught:
        case("exported-manifest")
    assert caught.value.where == "exported-manifest/exported.yaml:7"
    assert caught.value.hint == (
        "remove metadata.creationTimestamp (line 7), metadata.resourceVersion (line 14), metadata.uid (line 15)"
    )


@pytest.mark.parametrize("field", [*(f"metadata.{key}" for key in SERVER_METADATA), "status"])
@pytest.mark.parametrize("value", ["'58'", "2", "{a: b}", "[{a: b}]", "{a: {b: [0]}}"])
def test_each_field_that_only_the_server_writes_is_named(field: str, value: str, tmp_path: Path) -> None:
    parent, _, key = field.rpartition(".")
    line = f"  {key}: {value}\n" if parent else ""
    text = f"apiVersion: v1\nkind: A\nmetadata:\n  name: x\n{line}" + ("" if parent else f"{key}: {value}\n")
    with pytest.raises(InvalidManifest) as caught:
        load(files(tmp_path / "k8s", app=text), tmp_path)
    assert (caught.value.where, caught.value.hint) == ("k8s/app.yaml:5", f"remove {field} (line 5)")


EMPTY = ["null", "{}", "''", "[]", "{conditions: [], names: {kind: '', plural: null}}"]


@pytest.mark.parametrize("value", EMPTY)
def test_an_empty_field_of_the_server_is_what_generators_write_and_accepted(value: str, tmp_path: Path) -> None:
    text = f"apiVersion: v1\nkind: A\nmetadata: {{name: x, creationTimestamp: {value}}}\nstatus: {value}\n"
    assert len(load(files(tmp_path / "k8s", app=text), tmp_path)) == 1


def test_the_field_of_an_item_of_a_json_list_has_its_line(tmp_path: Path) -> None:
    item = {"apiVersion": "v1", "kind": "A", "metadata": {"name": "x 🚀", "uid": "1"}}
    (tmp_path / "app.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]}, indent=1))
    with pytest.raises(InvalidManifest) as caught:
        load(tmp_path, tmp_path)
    assert (caught.value.where, caught.value.hint) == ("app.json:10", "remove metadata.uid (line 10)")


# --- names of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"), [(b"a\xff.yaml", r"a\xff.yaml"), ("ä.yaml".encode(), "ä.yaml"), (b"a\nb.yaml", r"a\nb.yaml")]
)
@pytest.mark.parametrize("text", [b"\xff", b"kind: ConfigMap\n", b"a: [\n"])
def test_a_mistake_in_a_file_of_any_name_can_be_printed(name: bytes, shown: str, text: bytes, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(text)
    with pytest.raises(InvalidManifest) as caught:
        load(tmp_path, tmp_path)
    assert caught.value.where.partition(":")[0] == shown
    assert str(caught.value).encode()


def test_every_message_about_a_file_of_any_name_can_be_printed(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"k\xff")
    with pytest.raises(InvalidManifest, match="no such folder") as caught:
        load(folder, tmp_path)
    assert caught.value.where == r"k\xff"
    files(
        folder, a="apiVersion: v1\nkind: A\nmetadata: {name: x}\n", b="apiVersion: v1\nkind: A\nmetadata: {name: x}\n"
    )
    with pytest.raises(InvalidManifest, match=r"already defined in k\\xff/a.yaml:1"):
        load(folder, tmp_path)
    (folder / os.fsdecode(b"c\xfe")).symlink_to(tmp_path)
    with pytest.raises(InvalidManifest, match="a link to a folder") as caught:
        load(folder, tmp_path)
    assert caught.value.where == r"k\xff/c\xfe"
    (folder / "kustomization.yaml").write_text("resources: [..]\n")
    with pytest.raises(InvalidManifest) as caught:
        load(folder, folder)
    assert str(caught.value).encode()


# --- Secrets ---------------------------------------------------------------------------------------------------------


def decoded(item: Object) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in item["data"].items()}


def test_a_secret_has_exactly_the_keys_of_its_release_in_data() -> None:
    folder = CASES / "stringdata-key-removed"
    paths = (folder / "1.yaml", folder / "2.yaml")
    loaded = [Manifest(item.value, path.name) for path in paths for item in read(path.read_text(), path.name)]
    placed = [set_namespaces([manifest], "shop", {("v1", "Secret"): True}, ())[0] for manifest in loaded]
    assert [decoded(item) for item in placed] == [
        {"user": "alpha", "token": "one"},
        {"account": "alpha", "token": "one"},
    ]
    assert not any("stringData" in item for item in placed)


def secret(**fields: Any) -> Object:  # noqa: ANN401
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, **fields}


def test_string_data_wins_over_data_as_on_the_server() -> None:
    item = encode_string_data(secret(data={"a": "b2xk", "b": "a2VwdA=="}, stringData={"a": "néw"}, type="Opaque"))
    assert decoded(item) == {"a": "néw", "b": "kept"}
    assert item["type"] == "Opaque"


@pytest.mark.parametrize("empty", [None, {}])
def test_empty_string_data_is_left_out(empty: object) -> None:
    assert encode_string_data(secret(stringData=empty, data={"a": "eA=="})) == secret(data={"a": "eA=="})


@pytest.mark.parametrize(
    "item", [secret(stringData={"a": 1}), secret(stringData=["a"]), secret(data="x", stringData={})]
)
def test_a_secret_of_a_wrong_shape_is_left_to_the_server_to_refuse(item: Object) -> None:
    assert encode_string_data(item) == item


def test_an_object_that_only_has_the_name_of_a_secret_stays_as_it_is() -> None:
    other = {**secret(stringData={"a": "b"}), "apiVersion": "example.org/v1"}
    assert encode_string_data(other) == other
