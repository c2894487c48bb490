"""How a cluster is reached: kubeconfig and context, the pod's service account, or a kubeconfig loaded elsewhere."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
    load_kube_config_from_dict,
)
from kubernetes_asyncio.config.kube_config import KubeConfigMerger

from prefect_cd.errors import Invalid
from prefect_cd.pipeline.models import ClusterAccess

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class LoadedKubeconfig:
    """A kubeconfig that is loaded already, for example from a Prefect block. Never printed."""

    content: Mapping[str, Any] = field(repr=False)
    context: str | None = None


Access = ClusterAccess | LoadedKubeconfig


async def load_configuration(access: Access) -> Configuration:
    """The client configuration that `access` describes.

    Raises:
        Invalid: no kubeconfig, an unreadable one, or no such context.
    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = 64
    try:
        if isinstance(access, LoadedKubeconfig):
            await load_kube_config_from_dict(
                config_dict=dict(access.content), context=access.context, client_configuration=configuration
            )
        elif is_in_pod(access):
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            file = _file(access)
            _reject_unknown_context(access, file)
            await load_kube_config(config_file=file, context=access.context, client_configuration=configuration)
    except (ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise Invalid(
            f"no cluster to talk to: {_reason(error)}",
            where=_source(access),
            hint="name a kubeconfig and context in the pipeline file, or set KUBECONFIG",
        ) from None  # the library's errors quote the kubeconfig, with its tokens
    return configuration


def _reason(error: Exception) -> str:
    """What is wrong with a kubeconfig, without any of its content."""
    if isinstance(error, yaml.MarkedYAMLError):
        return f"not YAML, line {error.problem_mark.line + 1}" if error.problem_mark else "not YAML"
    if isinstance(error, (ConfigException, OSError)):
        return re.sub(r"\{.*\}", "{…}", str(error), flags=re.DOTALL)
    return "the kubeconfig cannot be read"


def is_in_pod(access: ClusterAccess) -> bool:
    """Whether `access` means the service account of the pod that this process runs in."""
    configured = access.kubeconfig or access.context or os.environ.get("KUBECONFIG")
    return access.in_cluster or (not configured and (_SERVICE_ACCOUNT / "token").exists())


def _reject_unknown_context(access: ClusterAccess, file: str) -> None:
    """Raise with the names of the contexts: the library's error only says that there is no such context."""
    if access.context is None:
        return
    merged = KubeConfigMerger(file).config
    names = sorted(str(context["name"]) for context in merged.value["contexts"]) if merged else []
    if access.context not in names:
        raise Invalid(
            f"there is no context {access.context!r}; there are: {', '.join(names) or 'none'}",
            where=_source(access),
            hint="correct `context` in the pipeline file, or see `kubectl config get-contexts`",
        )


def default_namespace(access: ClusterAccess) -> str:
    """The namespace that `access` implies: that of the pod or of the context, else `default`."""
    if is_in_pod(access):
        return (_SERVICE_ACCOUNT / "namespace").read_text().strip()
    try:
        merged: Any = KubeConfigMerger(_file(access)).config
        entry: Any = merged["contexts"].get_with_name(access.context or merged["current-context"])
        return str(entry["context"].safe_get("namespace") or "default")
    except (ConfigException, yaml.YAMLError, OSError, TypeError):
        return "default"  # `load_configuration` raises what is wrong with the file


def _file(access: ClusterAccess) -> str:
    # the library reads KUBECONFIG only once, at its import
    return access.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"


def _source(access: Access) -> str:
    if isinstance(access, LoadedKubeconfig):
        return "KubernetesCredentials block"
    return _file(access)
