"""Where a stage works: one application's environment, and how its cluster is reached."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TypeVar

from pydantic import Field

from prefect_cd.environment.changes import prepare_objects
from prefect_cd.environment.ownership import Ownership
from prefect_cd.environment.record import Record
from prefect_cd.errors import Invalid
from prefect_cd.kube.client import PATIENCE, Cluster
from prefect_cd.kube.kubeconfig import Access, LoadedKubeconfig
from prefect_cd.kube.objects import Object
from prefect_cd.kube.service_url import open_url
from prefect_cd.manifests.load import Manifest, display_name
from prefect_cd.manifests.prepare import encode_string_data
from prefect_cd.pipeline.models import ClusterAccess, Environment, Pipeline
from prefect_cd.release.model import Release, Result
from prefect_cd.tasks.connection import CONNECTIONS

Version = Release | Record
"""What can be brought into an environment: a new release, or the record of an old one."""
_T = TypeVar("_T")


class Target(Result):
    """An environment of an application."""

    application: str
    environment: Environment
    insecure_registry: bool | None = Field(default=None, description="`image.insecure` of the pipeline file")
    token_service: str | None = Field(default=None, description="`image.token_service` of the pipeline file")

    @classmethod
    def of(cls, pipeline: Pipeline, environment: str) -> "Target":
        """The target called `environment` in the pipeline file; KeyError when there is none."""
        return cls(
            application=pipeline.application,
            environment=pipeline.environment(environment),
            insecure_registry=pipeline.image.insecure,
            token_service=pipeline.image.token_service,
        )

    @property
    def name(self) -> str:
        """The environment's name."""
        return self.environment.name

    @property
    def ownership(self) -> Ownership:
        """Namespace and labels."""
        return Ownership.of(self.application, self.environment)

    @property
    def takes_back(self) -> bool:
        """Whether a release takes fields back that somebody changed by hand: an approver is shown them."""
        return self.environment.approval is not None

    def access(self) -> Access:
        """How the cluster is reached; loads the Prefect block where the pipeline file names one.

        Raises:
            Invalid: no such KubernetesCredentials block.
        """
        block = self.environment.cluster.credentials
        if block is None:
            return self.environment.cluster
        # imports a worker and an operator framework: half a second that only users of a block pay
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

    def run(self, work: Callable[[Cluster], Awaitable[_T]], *, patience: timedelta = PATIENCE) -> _T:
        """Run a coroutine with the run's connection to the environment's cluster, and wait for it.

        Args:
            work: gets the connection.
            patience: how long a request that can heal is tried again.
        """

        async def connected() -> _T:
            async with self.connection(patience) as cluster:
                return await work(cluster)

        return CONNECTIONS.run(connected)

    @contextmanager
    def url(self) -> Iterator[str]:
        """The environment's URL as it can be requested from here, for as long as the block runs.

        Raises:
            Invalid: no such Service or port.
            GateErrored: the Service has no ready pod.
        """

        @asynccontextmanager
        async def opened() -> AsyncIterator[str]:
            namespace, address = self.environment.namespace, self.environment.url or ""
            async with self.connection() as cluster, open_url(cluster, namespace, address) as url:
                yield url

        with CONNECTIONS.held(opened) as url:
            yield url

    @asynccontextmanager
    async def connection(self, patience: timedelta = PATIENCE) -> AsyncIterator[Cluster]:
        """The run's connection to the environment's cluster, for coroutines in the loop of `CONNECTIONS`."""
        key = f"{self.environment.cluster!r} {os.environ.get('KUBECONFIG', '')}"
        async with CONNECTIONS.cluster(key, self.access, patience=patience) as cluster:
            yield cluster

    async def objects(self, cluster: Cluster, version: Version) -> tuple[Object, ...]:
        """The full set of objects of a version: namespaces filled in, labelled as ours."""
        if isinstance(version, Record):
            return tuple(map(encode_string_data, version.objects))  # an older version recorded `stringData`
        manifests = [Manifest(item, display_name(item)) for item in version.manifests[self.name]]
        prepared = await prepare_objects(
            cluster, manifests, self.environment.namespace, self.environment.cluster_scoped
        )
        return tuple(self.ownership.label(item, version.id) for item in prepared)


def id_of(version: Version) -> str:
    """The release id of a version."""
    return version.id if isinstance(version, Release) else version.release_id


def hash_of(version: Version) -> str:
    """The hash of a version: equal hashes are one release."""
    return version.hash if isinstance(version, Release) else version.release_hash
