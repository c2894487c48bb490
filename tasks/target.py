"""Where a stage works: one application's environment, and how its cluster is reached."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from prefect_cd.environment.apply import prepare_objects
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.records import Record
from prefect_cd.errors import Invalid
from prefect_cd.kube import client as kubernetes
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.kubeconfig import Access, LoadedKubeconfig
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.load import Manifest, display_name
from prefect_cd.pipeline.models import ClusterAccess, Environment, Pipeline
from prefect_cd.release.model import Release, Result

Version = Release | Record
"""What can be brought into an environment: a new release, or the record of an old one."""


class Target(Result):
    """An environment of an application."""

    application: str
    environment: Environment

    @classmethod
    def of(cls, pipeline: Pipeline, environment: str) -> "Target":
        """The target called `environment` in the pipeline file; KeyError when there is none."""
        return cls(application=pipeline.application, environment=pipeline.environment(environment))

    @property
    def name(self) -> str:
        """The environment's name."""
        return self.environment.name

    @property
    def ownership(self) -> Ownership:
        """Namespace and labels."""
        return Ownership(self.application, self.environment.name, self.environment.namespace)

    def access(self) -> Access:
        """How the cluster is reached; a Prefect block is loaded now.

        Raises:
            Invalid: no such KubernetesCredentials block.
        """
        block = self.environment.cluster.credentials
        if block is None:
            return self.environment.cluster
        # it loads a worker and an operator framework: half a second that only those pay who use a block
        from prefect_kubernetes.credentials import KubernetesCredentials  # noqa: PLC0415

        try:
            credentials = KubernetesCredentials.load(block, _sync=True)
        except ValueError as error:
            raise Invalid(
                f"there is no KubernetesCredentials block {block!r}",
                where=f"environment {self.name}",
                hint="create it in the Prefect UI, or correct `credentials` in the pipeline file",
            ) from error
        if credentials.cluster_config is None:
            return ClusterAccess()
        config = credentials.cluster_config
        return LoadedKubeconfig(config.config, config.context_name)

    @asynccontextmanager
    async def connect(self, patience: timedelta = kubernetes.PATIENCE) -> AsyncIterator[Cluster]:
        """A connection to the environment's cluster."""
        async with kubernetes.connect(self.access(), patience=patience) as connection:
            yield connection

    async def objects(self, cluster: Cluster, version: Version) -> tuple[Object, ...]:
        """The full set of objects of a version: namespaces filled in, labelled as ours."""
        if isinstance(version, Record):
            return version.objects
        found = [Manifest(item, display_name(item)) for item in version.manifests[self.name]]
        placed = await prepare_objects(cluster, found, self.environment.namespace, self.environment.cluster_scoped)
        return tuple(self.ownership.label(item, version.id) for item in placed)


def id_of(version: Version) -> str:
    """The release id of a version."""
    return version.id if isinstance(version, Release) else version.release_id


def hash_of(version: Version) -> str:
    """The hash of a version: equal hashes are one release."""
    return version.hash if isinstance(version, Release) else version.release_hash
