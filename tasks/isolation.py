"""How the programs of a commit are isolated: what the pipeline file requires, and what they must not see."""

import os
from collections.abc import Iterator
from pathlib import Path

from prefect.settings import get_current_settings

from prefect_cd.pipeline.models import Check, Gate, Pipeline
from prefect_cd.process import Isolation
from prefect_cd.tasks import workspace

_CREDENTIALS = (
    ".kube",
    ".ssh",
    ".gnupg",
    ".git-credentials",
    ".config/git",
    ".config/gh",
    ".aws",
    ".azure",
    ".config/gcloud",
    ".docker",
    ".config/containers",
    ".terraform.d",
    ".vault-token",
    ".pypirc",
)
"""Below HOME. Not the settings of package managers (.netrc, .npmrc, pip.conf): tests install packages by them."""
_OF_THE_MACHINE = (
    "/var/run/secrets/kubernetes.io",
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/podman",
    "/run/containerd",
)
_VARIABLES = ("KUBECONFIG", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "XDG_RUNTIME_DIR")


def isolation_of(pipeline: Pipeline, test: Check | Gate) -> Isolation:
    """The isolation of the program of a check or gate; a gate keeps the network, since it tests a URL."""
    level = test.isolation or pipeline.security.isolation
    if level == "network" and isinstance(test, Gate):
        level = "processes"
    return Isolation(level, hidden=tuple(dict.fromkeys(_hidden(pipeline))))


def _hidden(pipeline: Pipeline) -> Iterator[Path]:
    """Prefect's files (its database, results and credentials), those of other runs, and credentials of the user."""
    settings = get_current_settings()
    yield from (settings.home, settings.results.local_storage_path, settings.profiles_path, workspace.home())
    yield from (Path.home() / name for name in _CREDENTIALS)
    yield from map(Path, _OF_THE_MACHINE)
    for name in _VARIABLES:
        yield from (Path(part) for part in os.environ.get(name, "").split(os.pathsep) if part)
    for environment in pipeline.environments:
        yield from (Path(path) for path in (environment.cluster.kubeconfig, environment.record_key) if path)
