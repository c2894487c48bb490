"""The sample shop as the demo delivers it: its repository, its pipeline file, and its namespaces in the cluster."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml
from backstage.programs import DemoError

from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.records import RecordStore
from prefect_cd.errors import DeliveryError, MissingTool
from prefect_cd.gates.browser.executable import find_browser
from prefect_cd.kube.client import connect
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests import labels
from prefect_cd.pipeline.models import ClusterAccess

NAME = "shop"
NAMESPACES = ("demo-staging", "demo-production")
REGISTRY = os.environ.get("REGISTRY") or "localhost:5000"
BUILDER = os.environ.get("BUILDER") or None
_SHOP = Path(__file__).resolve().parents[1] / "shop"
_AUTHOR = ("-c", "user.name=Demo", "-c", "user.email=demo@example.com", "-c", "commit.gpgsign=false")
_DELETION_SECONDS = 90


class Repository:
    """A git repository with the shop's version 1; later versions come as patches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
        shutil.copytree(_SHOP, folder, ignore=ignored, copy_function=shutil.copyfile)
        for manifest in folder.glob("k8s/*/deployment.yaml"):
            manifest.write_text(manifest.read_text().replace("localhost:5000/shop", f"{REGISTRY}/demo/shop"))
        self._git("init", "--quiet", "--initial-branch=main")

    def commit(self, subject: str, patch: str = "") -> str:
        """Commit a version; returns its SHA."""
        if patch:
            self._git("apply", f"versions/{patch}")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", subject)
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *words: str) -> str:
        return subprocess.run(
            ["git", *_AUTHOR, *words], cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout


def pipeline(repository: Path) -> tuple[dict[str, Any], list[str]]:
    """The shop's own pipeline file with the demo's namespaces and registry, and notes on what it leaves out."""
    loaded: dict[str, Any] = yaml.safe_load((_SHOP / "pipeline.yaml").read_text())
    image: dict[str, Any] = {"name": f"{REGISTRY}/demo/shop", "context": "app"}
    base = f"{REGISTRY}/base/python:3.11"
    if BUILDER:
        image["builder"] = BUILDER
    elif _has_image(base):  # a private registry with a base image: public registries may be out of reach
        image |= {"args": {"BASE": base}, "options": ["--isolation", "chroot", "--network", "host"]}
    for environment, namespace in zip(loaded["environments"], NAMESPACES, strict=True):
        environment["namespace"] = namespace
        environment["rollout"] = {"settle": "5s"}  # the default of half a minute is too long for a demonstration
    source = {"repository": str(repository), "branch": "main"}
    left_out = _leave_out_browser(loaded["environments"])
    return {**loaded, "source": source, "image": image}, left_out


def _leave_out_browser(environments: Sequence[dict[str, Any]]) -> list[str]:
    try:
        find_browser()
    except MissingTool as error:
        for environment in environments:
            environment["gates"] = [gate for gate in environment["gates"] if "browser" not in gate]
        return [f"the E2E tests in a browser are left out: {error.reason}; {error.hint}"]
    return []


def _has_image(reference: str) -> bool:
    host, _, rest = reference.partition("/")
    name, _, tag = rest.rpartition(":")
    try:
        answer = httpx.get(f"http://{host}/v2/{name}/tags/list", timeout=5, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return False
    return tag in (answer.get("tags") or [])


def describe_cluster() -> str:
    """The version and the address of the cluster that the demo runs on.

    Raises:
        DemoError: the cluster does not answer.
    """

    async def describe() -> str:
        async with connect(ClusterAccess(), patience=timedelta(seconds=5)) as cluster:
            return f"Kubernetes {await cluster.version()} at {cluster.server}"

    try:
        return asyncio.run(describe())
    except DeliveryError as error:
        raise DemoError(str(error)) from error


def production(commit: str) -> tuple[str, str]:
    """The release that production runs, and the state of the newest record of a commit there; both may be empty.

    Both come from the cluster, not from the run that claims to have brought them there.
    """

    async def read() -> tuple[str, str]:
        async with connect(ClusterAccess()) as cluster:
            deployment = await cluster.get(Ref("apps/v1", "Deployment", NAMESPACES[1], NAME))
            entries = await RecordStore(cluster, Ownership(NAME, "production", NAMESPACES[1])).entries()
        annotations = (deployment or {"metadata": {}})["metadata"].get("annotations") or {}
        states = [entry.state.value for entry in entries if entry.release_id.startswith(commit[:7])]
        return annotations.get(labels.RELEASE, ""), states[0] if states else ""

    return asyncio.run(read())


def remove_namespaces() -> None:
    """Delete the demo's namespaces, also those of a demo that was killed, and wait until they are gone."""

    async def remove() -> None:
        async with connect(ClusterAccess(), patience=timedelta(seconds=5)) as cluster:
            refs = [Ref("v1", "Namespace", "", name) for name in NAMESPACES]
            for ref in refs:
                await cluster.delete(ref)
            for _ in range(_DELETION_SECONDS * 2):
                if not [ref for ref in refs if await cluster.get(ref)]:
                    return
                await asyncio.sleep(0.5)
        raise DemoError(
            f"{' and '.join(NAMESPACES)} still exist after {_DELETION_SECONDS} s; "
            f"see kubectl describe namespace {NAMESPACES[0]}"
        )

    asyncio.run(remove())
