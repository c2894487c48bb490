"""From files of a commit to objects: what is loaded, what is refused with which line, and what a diff hides."""

import copy
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.errors import Errored, InvalidManifest, MissingTool
from prefect_cd.kube.objects import Object
from prefect_cd.manifests import kustomize, labels, prepare
from prefect_cd.manifests.diff import HIDDEN, HIDDEN_CHANGED, changed_lines, diff, strip
from prefect_cd.manifests.labels import label
from prefect_cd.manifests.load import Manifest, load
from prefect_cd.manifests.prepare import pin_image, set_namespaces, waves
from prefect_cd.release.model import BuiltImage

IMAGE = BuiltImage(name="registry.example.com/acme/shop", digest="sha256:" + "a" * 64, built=True)
CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\n"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def refused(text: str, top: Path) -> InvalidManifest:
    write(top / "k8s", app=text)
    with pytest.raises(InvalidManifest) as caught:
        load(top / "k8s", top)
    return caught.value


def config_map(name: str = "shop", **metadata: object) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}}


def secret(**data: str) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": data}


def deployment(*images: str) -> Object:
    containers = [{"name": f"c{number}", "image": image} for number, image in enumerate(images)]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "shop"},
        "spec": {"template": {"spec": {"containers": containers}}},
    }


# --- loading ---------------------------------------------------------------------------------------------------------


def test_all_files_of_a_folder_and_its_subfolders_are_loaded_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = write(tmp_path / "k8s", b="---\n" + CONFIG.replace("shop", "b") + "---\n" + CONFIG.replace("shop", "c"))
    write(folder / "a", a=CONFIG.replace("shop", "a"))
    (folder / "d.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "d"}}')
    (folder / "README.md").write_text("# not a manifest")
    manifests = load(folder, tmp_path)
    assert [(manifest.item["metadata"]["name"], manifest.where) for manifest in manifests] == [
        ("a", "k8s/a/a.yaml:1"),
        ("b", "k8s/b.yaml:2"),
        ("c", "k8s/b.yaml:6"),
        ("d", "k8s/d.json:1"),
    ]


def test_the_objects_of_a_list_each_have_their_own_line(tmp_path: Path) -> None:
    write(
        tmp_path / "k8s",
        app="apiVersion: v1\nkind: List\nitems:\n"
        "  - {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n"
        "  - apiVersion: v1\n    kind: List\n    items:\n"
        "      - {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}\n",
    )
    assert [manifest.where for manifest in load(tmp_path / "k8s", tmp_path)] == ["k8s/app.yaml:4", "k8s/app.yaml:8"]


def test_empty_documents_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    write(tmp_path / "k8s", app=f"\ufeff---\n# nothing\n---\n{CONFIG}---\n")
    assert [manifest.where for manifest in load(tmp_path / "k8s", tmp_path)] == ["k8s/app.yaml:4"]


def test_values_are_read_as_kubernetes_reads_them(tmp_path: Path) -> None:
    write(
        tmp_path / "k8s",
        app=CONFIG + "data:\n  ports: 22:22\n  minutes: 190:20:30.15\n  equals: =\n  9000: shop\n  mode: 0644\n"
        "  base: &base {x: w}\n  more:\n    <<: *base\n    x: z\n",
    )
    assert load(tmp_path / "k8s", tmp_path)[0].item["data"] == {
        "ports": "22:22",
        "minutes": "190:20:30.15",
        "equals": "=",
        "9000": "shop",
        "mode": 420,
        "base": {"x": "w"},
        "more": {"x": "z"},
    }


TWO_VERSIONS = "---\n".join(
    f"apiVersion: autoscaling/{version}\nkind: Scaler\nmetadata: {{name: x}}\n" for version in ("v1", "v2")
)
TWICE_IN_A_LIST = "apiVersion: v1\nkind: List\nitems:\n" + "- {apiVersion: v1, kind: A, metadata: {name: x}}\n" * 2
BAD: dict[str, tuple[str, int, str]] = {
    "tab": (CONFIG + "data:\n\tx: y\n", 5, "not YAML"),
    "open bracket": (CONFIG + "data: [\n", 5, "not YAML"),
    "unknown tag": (CONFIG + "data: !!python/object:os.system x\n", 4, "not YAML"),
    "control character": (CONFIG + "data: {x: '\x00'}\n", 4, "not YAML"),
    "scalar": ("---\nhello\n", 2, "a str, not an object"),
    "list": ("# first\n- apiVersion: v1\n", 2, "a list, not an object"),
    "no kind": (CONFIG + "---\napiVersion: v1\nmetadata: {name: x}\n", 5, "no kind"),
    "no apiVersion": ("kind: ConfigMap\nmetadata: {name: x}\n", 1, "no apiVersion"),
    "neither": ("metadata: {name: x}\n", 1, "no apiVersion and no kind"),
    "kind is a number": ("apiVersion: v1\nkind: 1\nmetadata: {name: x}\n", 1, "no kind"),
    "apiVersion is a path": ("apiVersion: v1/../../apis\nkind: A\nmetadata: {name: x}\n", 1, "is not an apiVersion"),
    "no metadata": ("apiVersion: v1\nkind: ConfigMap\n", 1, "a ConfigMap without metadata.name"),
    "no name": ("apiVersion: v1\nkind: ConfigMap\nmetadata: {labels: {}}\n", 1, "a ConfigMap without metadata.name"),
    "empty name": ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ''}\n", 1, "without metadata.name"),
    "name is a number": ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: 1}\n", 1, "without metadata.name"),
    "generateName": ("apiVersion: v1\nkind: Job\nmetadata: {generateName: x-}\n", 1, "a Job without metadata.name"),
    "name is a path": ("apiVersion: v1\nkind: A\nmetadata: {name: ../../secrets/x}\n", 1, "is not a valid name"),
    "name is the folder above": ("apiVersion: v1\nkind: A\nmetadata: {name: '..'}\n", 1, "is not a valid name"),
    "labels are a list": ("apiVersion: v1\nkind: A\nmetadata:\n  name: x\n  labels: [a]\n", 1, "labels of A x is not"),
    "annotations are text": ("apiVersion: v1\nkind: A\nmetadata: {name: x, annotations: a}\n", 1, "annotations of A x"),
    "duplicate": (CONFIG + "---\n" + CONFIG, 5, "ConfigMap shop is already defined in k8s/app.yaml:1"),
    "duplicate in another version": (
        TWO_VERSIONS,
        5,
        "is already defined in k8s/app.yaml:1",
    ),
    "duplicate in a list": (
        TWICE_IN_A_LIST,
        5,
        "A x is already defined in k8s/app.yaml:4",
    ),
    "item of a list without kind": ("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1}\n", 4, "no kind"),
    "key twice": (CONFIG + "data:\n  a: x\n  b: y\n  a: z\n", 7, "duplicate key a, first in line 5"),
    "key twice, as number and text": (CONFIG + "data:\n  '1': x\n  1: y\n", 6, "duplicate key 1, first in line 5"),
    "key is a truth value": (CONFIG + "data:\n  on: x\n", 5, "key on is not a string"),
    "key is a map": (CONFIG + "data:\n  {a: b}: x\n", 5, "a key is not a string"),
    "not a number": (CONFIG + "data:\n  x: .nan\n", 5, "a float, which JSON does not have"),
    "infinity": (CONFIG + "data:\n  x: -.inf\n", 5, "a float, which JSON does not have"),
    "binary": (CONFIG + "data:\n  x: !!binary aGk=\n", 5, "a bytes, which JSON does not have"),
    "set": (CONFIG + "data:\n  x: !!set {a, b}\n", 5, "a set, which JSON does not have"),
    "half a character": (CONFIG + 'data:\n  x: "\\ud800"\n', 1, ""),
    "half a character in JSON": (
        '{"apiVersion": "v1", "kind": "A", "metadata": {"name": "\\ud800"}}',
        1,
        "a value that JSON does not have",
    ),
    "an alias in itself": (CONFIG + "data: &x\n  a: *x\n", 4, "an alias inside its own anchor"),
    "nested too deeply": (CONFIG + "data: " + "[" * 5000 + "]" * 5000 + "\n", 1, "nested too deeply"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_an_object_is_refused_with_file_and_line(name: str, tmp_path: Path) -> None:
    text, line, problem = BAD[name]
    error = refused(text, tmp_path)
    assert error.where == f"k8s/app.yaml:{line}", error
    assert problem in error.reason


def test_aliases_that_would_exhaust_the_memory_are_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    error = refused(CONFIG + "data:\n" + "".join(f"  {line}\n" for line in bomb.splitlines()), tmp_path)
    assert "too large once its aliases are expanded" in error.reason


def test_i7_a_line_that_is_not_yaml_is_not_quoted_because_it_may_be_a_secrets(tmp_path: Path) -> None:
    error = refused("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\nstringData: {password: hunter2, ]\n", tmp_path)
    assert error.where == "k8s/app.yaml:4"
    assert "hunter2" not in str(error)
    assert error.__suppress_context__
    assert error.__cause__ is None


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "k8s")
    (folder / "app.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidManifest, match="not UTF-8") as caught:
        load(folder, tmp_path)
    assert caught.value.where == "k8s/app.yaml"


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="no such folder") as caught:
        load(tmp_path / "k8s", tmp_path)
    assert caught.value.where == "k8s"
    assert "manifests" in caught.value.hint


@pytest.mark.parametrize("text", ["", "---\n# nothing\n"])
def test_a_folder_without_objects_is_refused(text: str, tmp_path: Path) -> None:
    error = refused(text, tmp_path)
    assert error.reason == "no objects in this folder"
    assert error.where == "k8s"


def test_i7_a_folder_that_is_a_link_out_of_the_commit_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", app=CONFIG)
    top = tmp_path / "commit"
    top.mkdir()
    (top / "k8s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidManifest, match="is a link that leads out of the commit"):
        load(top / "k8s", top)


def test_i7_a_file_that_is_a_link_out_of_the_commit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private.yaml").write_text(CONFIG)
    top = write(tmp_path / "commit")
    folder = write(top / "k8s")
    (folder / "app.yaml").symlink_to(tmp_path / "private.yaml")
    with pytest.raises(InvalidManifest, match="leads out of the commit") as caught:
        load(folder, top)
    assert caught.value.where == "k8s/app.yaml"


def test_a_link_within_the_commit_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "base", app=CONFIG)
    folder = write(tmp_path / "k8s")
    (folder / "app.yaml").symlink_to(tmp_path / "base" / "app.yaml")
    assert [manifest.where for manifest in load(folder, tmp_path)] == ["k8s/app.yaml:1"]


def test_a_link_to_a_folder_is_refused_and_not_left_out(tmp_path: Path) -> None:
    write(tmp_path / "base", app=CONFIG)
    folder = write(tmp_path / "k8s", other=CONFIG)
    (folder / "base").symlink_to(tmp_path / "base")
    with pytest.raises(InvalidManifest, match="a link to a folder") as caught:
        load(folder, tmp_path)
    assert caught.value.where == "k8s/base"


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "k8s")
    (folder / "app.yaml").symlink_to(folder / "gone.yaml")
    with pytest.raises(InvalidManifest, match="cannot be read"):
        load(folder, tmp_path)


# --- kustomize -------------------------------------------------------------------------------------------------------


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    write(tmp_path / "base", app=CONFIG, kustomization="resources: [app.yaml]\n")
    return write(tmp_path / "k8s", kustomization="resources: [../base]\nnamePrefix: my-\n")


@pytest.mark.timeout(30)
def test_an_overlay_is_built(overlay: Path, tmp_path: Path) -> None:
    if not shutil.which("kubectl") and not shutil.which("kustomize"):
        pytest.skip("neither kustomize nor kubectl is installed")
    (manifest,) = load(overlay, tmp_path)
    assert manifest.item["metadata"]["name"] == "my-shop"
    assert manifest.where.startswith("k8s (kustomize):")


@pytest.mark.timeout(30)
def test_an_overlay_that_does_not_build_is_refused_with_the_tools_message(overlay: Path, tmp_path: Path) -> None:
    if not shutil.which("kubectl") and not shutil.which("kustomize"):
        pytest.skip("neither kustomize nor kubectl is installed")
    (overlay / "kustomization.yaml").write_text("resources: [../base]\nnothing: [gone.yaml]\n")
    with pytest.raises(InvalidManifest, match="cannot build this overlay") as caught:
        load(overlay, tmp_path)
    assert "nothing" in caught.value.detail
    assert caught.value.where == "k8s"


def test_an_overlay_without_a_tool_to_build_it_is_an_error_that_says_what_to_install(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingTool, match="neither kustomize nor kubectl") as caught:
        load(overlay, tmp_path)
    assert caught.value.where == "k8s"


def tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "kustomize").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "kustomize").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_an_overlay_that_does_not_end_is_errored(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path / "bin", "exec sleep 60", monkeypatch)
    monkeypatch.setattr(kustomize, "_TIMEOUT", timedelta(milliseconds=100))
    with pytest.raises(Errored, match="did not build this overlay") as caught:
        load(overlay, tmp_path)
    assert caught.value.where == "k8s"
    assert caught.value.hint == "try it in a checkout: kustomize build k8s"


def test_i7_kustomize_sees_none_of_our_variables(
    overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "hunter2")
    tool(tmp_path / "bin", f'env > {tmp_path}/environment; printf "{CONFIG}"'.replace("\n", "\\n"), monkeypatch)
    assert len(load(overlay, tmp_path)) == 1
    assert "hunter2" not in (tmp_path / "environment").read_text()


# --- namespaces ------------------------------------------------------------------------------------------------------

NAMESPACED = {("v1", "ConfigMap"): True, ("v1", "Namespace"): False, ("rbac/v1", "ClusterRole"): False}


def put(*items: Object, allowed: tuple[str, ...] = ()) -> tuple[Object, ...]:
    manifests = [Manifest(item, f"k8s/app.yaml:{number}") for number, item in enumerate(items, start=1)]
    return set_namespaces(manifests, "shop", NAMESPACED, allowed)


@pytest.mark.parametrize("metadata", [{}, {"namespace": "shop"}, {"namespace": None}, {"namespace": ""}])
def test_the_namespace_is_set(metadata: dict[str, object]) -> None:
    assert put(config_map(**metadata))[0]["metadata"]["namespace"] == "shop"


def test_an_object_of_another_namespace_is_refused() -> None:
    with pytest.raises(InvalidManifest, match="is in namespace 'other', the environment's is 'shop'") as caught:
        put(config_map(), config_map("b", namespace="other"))
    assert caught.value.where == "k8s/app.yaml:2"


def test_two_manifests_that_are_one_object_once_the_namespace_is_set_are_refused() -> None:
    with pytest.raises(InvalidManifest, match=r"is already defined in k8s/app.yaml:1") as caught:
        put(config_map(), config_map(namespace="shop"))
    assert caught.value.where == "k8s/app.yaml:2"


def cluster_scoped(kind: str, name: str) -> Object:
    version = "v1" if kind == "Namespace" else "rbac/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


def test_a_cluster_scoped_object_has_to_be_allowed() -> None:
    role = cluster_scoped("ClusterRole", "shop")
    with pytest.raises(InvalidManifest, match="is cluster-scoped") as caught:
        put(role)
    assert "add ClusterRole to the environment's cluster_scoped" in caught.value.hint
    assert put(role, allowed=("ClusterRole",)) == (role,)


def test_the_environments_own_namespace_is_allowed_and_no_other() -> None:
    own, other = cluster_scoped("Namespace", "shop"), cluster_scoped("Namespace", "other")
    assert put(own) == (own,)
    with pytest.raises(InvalidManifest, match="Namespace other is cluster-scoped"):
        put(other)


# --- pinning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ":latest", ":1.2", "@sha256:" + "b" * 64, ":1@sha256:" + "b" * 64])
def test_the_image_is_pinned_under_any_tag_or_digest(suffix: str) -> None:
    (pinned,) = pin_image([deployment(IMAGE.name + suffix, "busybox:1")], IMAGE, where="k8s")
    assert prepare.images_of(pinned) == [IMAGE.reference, "busybox:1"]


def test_an_image_in_a_registry_with_a_port_is_pinned() -> None:
    image = IMAGE.model_copy(update={"name": "localhost:5000/shop"})
    (pinned,) = pin_image([deployment("localhost:5000/shop")], image, where="k8s")
    assert prepare.images_of(pinned) == [image.reference]


@pytest.mark.parametrize("other", [IMAGE.name + "-cache", "shop:1", "acme/shop", IMAGE.name + "/x", "x" + IMAGE.name])
def test_no_container_with_the_image_is_an_error_that_lists_the_images(other: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        pin_image([deployment(other, "busybox:1")], IMAGE, where="k8s")
    assert f"images: {', '.join(sorted([other, 'busybox:1']))}" in caught.value.reason
    assert caught.value.where == "k8s"


def test_init_containers_and_nested_templates_are_pinned() -> None:
    pod = {"initContainers": [{"image": IMAGE.name}], "containers": [{"image": "busybox"}, {"name": "no image"}]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "x"},
        "spec": {"jobTemplate": {"spec": {"template": {"spec": pod}}}},
    }
    (pinned,) = pin_image([job], IMAGE, where="k8s")
    assert prepare.images_of(pinned) == [IMAGE.reference, "busybox"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.builds(
    lambda kind, name, spec: {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": spec},
    st.sampled_from(["Namespace", "ConfigMap", "Service", "Deployment", "Ingress", "Widget", "Secret"]),
    st.text("abc", min_size=1, max_size=3),
    JSON,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(OBJECTS, max_size=5))
def test_pinning_keeps_everything_else_and_changes_no_input(items: list[Object]) -> None:
    objects = [*items, deployment(IMAGE.name)]
    before = copy.deepcopy(objects)
    pinned = pin_image(objects, IMAGE, where="k8s")
    assert objects == before
    assert pinned == (*before[:-1], deployment(IMAGE.reference))


# --- labels, order, strip --------------------------------------------------------------------------------------------


def test_every_object_gets_our_labels_and_keeps_its_own() -> None:
    item = config_map(labels={"app": "shop"})
    assert label(item, "shop", "staging", "r1")["metadata"] == {
        "name": "shop",
        "labels": {
            "app": "shop",
            labels.MANAGED_BY: "prefect-cd",
            labels.APPLICATION: "shop",
            labels.ENVIRONMENT: "staging",
        },
    }
    assert item["metadata"]["labels"] == {"app": "shop"}


def test_the_release_is_named_on_workloads_own_metadata_only() -> None:
    item = deployment("x")
    labelled = label(item, "shop", "staging", "r1")
    assert labelled["metadata"]["annotations"] == {labels.RELEASE: "r1"}
    assert labelled["spec"] == item["spec"]
    assert "annotations" not in label(item, "shop", "staging")["metadata"]


def test_waves_start_with_what_later_ones_need() -> None:
    kinds = ["Ingress", "Deployment", "Widget", "Service", "Secret", "CustomResourceDefinition", "Namespace"]
    items = [{"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}} for kind in kinds]
    assert [[item["kind"] for item in wave] for wave in waves(items)] == [
        ["Namespace"],
        ["CustomResourceDefinition"],
        ["Secret"],
        ["Service"],
        ["Deployment", "Widget"],
        ["Ingress"],
    ]


@settings(deadline=None, max_examples=50)
@given(st.lists(OBJECTS, max_size=12))
def test_waves_are_a_permutation_and_none_is_empty(items: list[Object]) -> None:
    ordered = waves(items)
    assert all(ordered)
    flat = [id(item) for wave in ordered for item in wave]
    assert sorted(flat) == sorted(map(id, items))


def test_what_only_the_server_writes_is_stripped() -> None:
    live = config_map(
        namespace="shop",
        uid="1",
        resourceVersion="2",
        generation=3,
        creationTimestamp="t",
        managedFields=[{}],
        labels={"a": "b"},
        annotations={
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
            "deployment.kubernetes.io/revision": "3",
            "mine": "x",
        },
    )
    live["status"] = {"ready": 1}
    live["data"] = {"x": "y"}
    before = copy.deepcopy(live)
    assert strip(live) == {
        **config_map(namespace="shop", labels={"a": "b"}, annotations={"mine": "x"}),
        "data": {"x": "y"},
    }
    assert live == before
    assert "annotations" not in strip(config_map(annotations={"deployment.kubernetes.io/revision": "3"}))["metadata"]


@settings(deadline=None, max_examples=50)
@given(OBJECTS)
def test_stripping_twice_is_stripping_once(item: Object) -> None:
    assert strip(strip(item)) == strip(item) == item


# --- diff ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(OBJECTS)
def test_the_diff_of_equal_objects_is_empty(item: Object) -> None:
    assert diff(item, copy.deepcopy(item)) == ""


@settings(deadline=None, max_examples=50)
@given(OBJECTS, OBJECTS)
def test_the_diff_of_different_objects_is_not_empty(one: Object, other: Object) -> None:
    assert bool(diff(one, other)) == (yaml.safe_dump(one) != yaml.safe_dump(other))


def test_a_diff_shows_what_changes() -> None:
    before, after = {**config_map(), "data": {"a": "1", "b": "2"}}, {**config_map(), "data": {"a": "1", "b": "3"}}
    assert changed_lines(diff(before, after)) == ["-  b: '2'", "+  b: '3'"]
    assert diff(None, config_map()).splitlines()[1] == "+apiVersion: v1"
    assert diff(config_map(), None).splitlines()[1] == "-apiVersion: v1"


def shown(before: Any, after: Any) -> list[str]:  # noqa: ANN401
    return changed_lines(diff(before, after))


def test_i7_values_of_secrets_are_never_in_a_diff() -> None:
    old, new = secret(a="hunter1", b="same"), secret(a="hunter2", b="same", c="hunter3")
    assert shown(old, new) == [f"-  a: {HIDDEN}", f"+  a: {HIDDEN_CHANGED}", f"+  c: {HIDDEN_CHANGED}"]
    for text in (diff(None, new), diff(old, None), diff(old, new)):
        assert "hunter" not in text
        assert "same" not in text


@pytest.mark.parametrize("data", ["hunter2", ["hunter2"], {"a": {"b": "hunter2"}}, {"a": ["hunter2"]}])
@pytest.mark.parametrize("key", ["data", "stringData"])
def test_i7_a_secret_of_a_wrong_shape_is_hidden_too(data: object, key: str) -> None:
    broken = {**secret(), key: data}
    for text in (diff(None, broken), diff(broken, None), diff(secret(a="x"), broken), diff(broken, secret(a="x"))):
        assert "hunter2" not in text


def test_i7_what_kubectl_applied_last_is_a_secrets_value_too() -> None:
    item = secret()
    item["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": '{"data":{"a":"hunter2"}}',
        "mine": "x",
    }
    assert "hunter2" not in diff(None, item)
    assert "mine: x" in diff(None, item)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text("abc", min_size=1), st.from_regex("secret-[0-9]{9}", fullmatch=True), max_size=4))
def test_i7_no_value_of_any_secret_shows(data: dict[str, str]) -> None:
    for text in (diff(None, secret(**data)), diff(secret(a="other"), secret(**data)), diff(secret(**data), None)):
        assert "secret-" not in text
