"""An overlay is built from its commit only: what refers to anything else is refused before the build."""

import shutil
from pathlib import Path

import pytest

from prefect_cd.errors import InvalidManifest
from prefect_cd.manifests.load import load

CASES = Path(__file__).parent / "cases"


def files(top: Path, **texts: str) -> Path:
    """YAML files below a folder; `__` in a name stands for a slash."""
    for name, text in texts.items():
        path = top / (name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return top


OUTSIDE: dict[str, str] = {
    "resources": "resources:\n- ../../elsewhere\n",
    "resources, in another case": "reSources:\n- ../../elsewhere\n",
    "resources, in a case of Unicode": "re\u017fources:\n- ../../elsewhere\n",
    "a file": "resources:\n- ../../elsewhere/secret.yaml\n",
    "through a folder": "resources:\n- here/../../../elsewhere\n",
    "bases": "bases:\n- ../../elsewhere\n",
    "components": "components:\n- ../../elsewhere\n",
    "an absolute path": "resources:\n- {absolute}\n",
    "a linked folder": "resources:\n- link\n",
    "a file in a linked folder": "resources:\n- link/secret.yaml\n",
    "a linked file": "resources:\n- secret.yaml\n",
    "a folder beside the commit that links into it": "resources:\n- ../../back\n",
    "file URL": "resources:\n- file://{absolute}\n",
    "https URL": "resources:\n- https://example.org/all.yaml\n",
    "URL of the name of a file": "resources:\n- http://here/app.yaml\n",
    "ssh URL": "resources:\n- ssh://git@example.org/acme/shop?ref=main\n",
    "scp address": "resources:\n- git@example.org:acme/shop\n",
    "scp address without user": "resources:\n- example.org:acme/shop\n",
    "forced git": "resources:\n- git::example.org/acme/shop\n",
    "a host with a folder of its name": "resources:\n- github.com/acme\n",
    "generators": "generators:\n- ../../elsewhere\n",
    "transformers": "transformers:\n- ../../elsewhere\n",
    "validators": "validators:\n- link\n",
    "a generator in place": "generators:\n- |-\n  {kind: ConfigMapGenerator, files: [../../elsewhere/secret.yaml]}\n",
    "a generator in a file": "generators: [generator.yaml]\n",
    "crds": "crds:\n- ../../elsewhere/secret.yaml\n",
    "configurations": "configurations:\n- https://example.org/all.yaml\n",
    "openapi": "openapi:\n  path: ../../elsewhere/secret.yaml\n",
    "patches": "patches:\n- path: https://example.org/all.yaml\n",
    "patchesStrategicMerge": "patchesStrategicMerge:\n- link/secret.yaml\n",
    "patchesJson6902": "patchesJson6902:\n- path: ../../elsewhere/secret.yaml\n",
    "replacements": "replacements:\n- path: ../../elsewhere/secret.yaml\n",
    "files of a generator": "configMapGenerator:\n- files: [a=../../elsewhere/secret.yaml]\n",
    "envs of a generator": "secretGenerator:\n- envs: [../../elsewhere/secret.yaml]\n",
    "env of a generator": "secretGenerator:\n- env: https://example.org/env\n",
    "values of a chart": "helmCharts:\n- valuesFile: ../../elsewhere/secret.yaml\n",
    "a second base": "resources: [here,\n  other]\n",
    "merged": "x: &x {path: ../../elsewhere/secret.yaml}\npatches:\n- <<: *x\n",
    "a name that no file can have": 'resources:\n- "a\\0b"\n',
}


@pytest.fixture
def commit(tmp_path: Path) -> Path:
    """A checkout with an overlay, and files beside it that belong to somebody else."""
    shutil.copytree(CASES / "kustomize-outside" / "elsewhere", tmp_path / "elsewhere")
    top = tmp_path / "checkout"
    config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\n"
    files(top / "overlay", here__app=config, here__kustomization="resources: [app.yaml]\n")
    files(top / "overlay", other__kustomization="\nresources:\n- ../../../elsewhere\n")
    files(top / "overlay", generator="kind: ConfigMapGenerator\nfiles:\n- https://example.org/all.yaml\n")
    files(top / "overlay/github.com/acme", app=config, kustomization="resources: [app.yaml]\n")
    (top / "overlay/link").symlink_to(tmp_path / "elsewhere")
    (top / "overlay/secret.yaml").symlink_to(tmp_path / "elsewhere/secret.yaml")
    (tmp_path / "back").symlink_to(top / "overlay/here")
    return top


@pytest.mark.parametrize("name", OUTSIDE)
def test_i7_an_overlay_that_leaves_the_commit_is_refused_with_its_line_before_it_is_built(
    name: str, commit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # what is refused before the build needs no kustomize
    text = OUTSIDE[name].replace("{absolute}", str(commit.parent / "elsewhere"))
    files(commit / "overlay", kustomization=text)
    with pytest.raises(InvalidManifest, match="the overlay refers to ") as caught:
        load(commit / "overlay", commit)
    lines = {
        "a second base": "overlay/other/kustomization.yaml:3",
        "a generator in a file": "overlay/generator.yaml:3",
        "merged": "overlay/kustomization.yaml:1",
        "a generator in place": "overlay/kustomization.yaml:1",  # of the document: the text stands in another
    }
    assert caught.value.where == lines.get(name, "overlay/kustomization.yaml:2")


def test_the_overlay_of_the_case_is_refused() -> None:
    top = CASES / "kustomize-outside" / "checkout"
    with pytest.raises(
        InvalidManifest, match=r"the overlay refers to \.\./\.\./elsewhere, a path that leaves"
    ) as caught:
        load(top / "overlay", top)
    assert caught.value.where == "overlay/kustomization.yaml:1"


def test_a_base_that_is_not_there_is_refused_with_its_line(commit: Path) -> None:
    files(commit / "overlay", kustomization="resources:\n- here\n- gone\n")
    with pytest.raises(InvalidManifest, match="gone is not in the commit") as caught:
        load(commit / "overlay", commit)
    assert caught.value.where == "overlay/kustomization.yaml:3"


@pytest.mark.timeout(30)
def test_an_overlay_with_everything_inside_of_the_commit_is_built(commit: Path) -> None:
    if not shutil.which("kubectl") and not shutil.which("kustomize"):
        pytest.skip("neither kustomize nor kubectl is installed")
    (commit / "overlay/link").unlink()
    (commit / "overlay/link").symlink_to(commit / "base", target_is_directory=True)
    files(commit / "base", app="apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
    files(commit / "base", kustomization="resources: [app.yaml]\n")
    files(
        commit / "component",
        kustomization="apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\ncommonAnnotations: {a: b}\n",
    )
    (commit / "overlay/a@2.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\n")
    patch = "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, data: {url: 'https://example.org/../..'}}"
    text = (
        f"resources: [link, ./here/, a@2.yaml]\ncomponents: [../component]\npatches:\n- patch: |\n    {patch}\n"
        "configMapGenerator:\n- {name: z, literals: ['a=https://example.org'], files: [kept=here/app.yaml]}\n"
        "commonAnnotations: {link: https://example.org}\ntransformers:\n- |\n"
        "  {apiVersion: builtin, kind: PrefixTransformer, metadata: {name: p}, prefix: p-,\n"
        "   fieldSpecs: [{path: metadata/name}]}\n"
    )
    files(commit / "overlay", kustomization=text)
    names = sorted(manifest.item["metadata"]["name"] for manifest in load(commit / "overlay", commit))
    assert names[:3] == ["p-shop", "p-x", "p-y"]
    assert [name[:4] for name in names[3:]] == ["p-z-"]
