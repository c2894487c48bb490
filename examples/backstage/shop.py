"""The sample shop as the demo delivers it: its repository, its pipeline file, and where it runs in the cluster."""

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

from prefect_cd.errors import DeliveryError, MissingTool
from prefect_cd.gates.browser.suite import find_browser
from prefect_cd.kube.client import connect
from prefect_cd.kube.resources import Ref
from prefect_cd.pipeline.models import ClusterAccess

NAME = "shop"
NAMESPACES = ("demo-staging", "demo-production")
REGISTRY = os.environ.get("REGISTRY") or "localhost:5000"
BUILDER = os.environ.get("BUILDER") or None
_SHOP = Path(__file__).resolve().parents[1] / "shop"
_AUTHOR = ("-c", "user.name=Demo", "-c", "user.email=demo@example.com", "-c", "commit.gpgsign=false")
_SECONDS_TO_FORGET = 90


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
    """The shop's own pipeline file with the demo's places; and what has to be left out on this machine, and why."""
    loaded: dict[str, Any] = yaml.safe_load((_SHOP / "pipeline.yaml").read_text())
    image: dict[str, Any] = {"name": f"{REGISTRY}/demo/shop", "context": "app"}
    base = f"{REGISTRY}/base/python:3.11"
    if BUILDER:
        image["builder"] = BUILDER
    elif _has_image(base):  # a registry of its own, without a way to public images
        image |= {"args": {"BASE": base}, "options": ["--isolation", "chroot", "--network", "host"]}
    for environment, namespace in zip(loaded["environments"], NAMESPACES, strict=True):
        environment["namespace"] = namespace
        environment["rollout"] = {"settle": "5s"}  # nobody watches a demonstration for the half minute of real life
    source = {"repository": str(repository), "branch": "main"}
    left_out = _leave_out_browser(loaded["environments"])
    return {**loaded, "source": source, "image": image}, left_out


def _leave_out_browser(environments: Sequence[dict[str, Any]]) -> list[str]:
    try:
        find_browser()
    except MissingTool as error:
        for each in environments:
            each["gates"] = [gate for gate in each["gates"] if "browser" not in gate]
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


def cluster_in_words() -> str:
    """Which cluster the demo plays on.

    Raises:
        DemoError: it does not answer.
    """

    async def ask() -> str:
        async with connect(ClusterAccess(), patience=timedelta(seconds=5)) as cluster:
            return f"Kubernetes {await cluster.version()} at {cluster.server}"

    try:
        return asyncio.run(ask())
    except DeliveryError as error:
        raise DemoError(str(error)) from error


def runs_in_production() -> str:
    """The release that the cluster itself says is in production."""

    async def ask() -> str:
        async with connect(ClusterAccess()) as cluster:
            deployment = await cluster.get(Ref("apps/v1", "Deployment", NAMESPACES[1], NAME)) or {}
            return str(deployment["metadata"]["annotations"]["prefect-cd.dev/release"])

    return asyncio.run(ask())


def remove_namespaces() -> None:
    """Delete the demo's namespaces, also those of a demo that was killed, and wait for their end."""

    async def remove() -> None:
        async with connect(ClusterAccess(), patience=timedelta(seconds=5)) as cluster:
            refs = [Ref("v1", "Namespace", "", name) for name in NAMESPACES]
            for ref in refs:
                await cluster.delete(ref)
            for _ in range(_SECONDS_TO_FORGET * 2):
                if not [ref for ref in refs if await cluster.get(ref)]:
                    return
                await asyncio.sleep(0.5)
        raise DemoError(f"{' and '.join(NAMESPACES)} do not go away; see kubectl describe namespace {NAMESPACES[0]}")

    asyncio.run(remove())
