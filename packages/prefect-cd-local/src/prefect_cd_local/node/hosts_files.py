"""Names of Services for pods: an /etc/hosts for each namespace, since there is no DNS server.

The names are those of kubernetes.io/docs/concepts/services-networking/dns-pod-service. Files are written in place,
because pods have them mounted. Services without a cluster IP have no names here, nor those whose cluster IP leads to
another program of this machine.
"""

from pathlib import Path

from prefect_cd_local.controllers.loop import Cache
from prefect_cd_local.controllers.objects import CLUSTER_IP_SERVED, is_withdrawn


class HostsFiles:
    """The hosts files of a node."""

    def __init__(self, folder: Path, services: Cache) -> None:
        self._folder, self._services = folder, services
        services.listen(lambda _: self._write())

    def file(self, namespace: str) -> Path:
        """Return the /etc/hosts for the pods of a namespace."""
        file = self._folder / namespace
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            self._write()
        return file

    def _write(self) -> None:
        for file in self._folder.glob("*"):
            lines = ["127.0.0.1 localhost", "::1 localhost"]
            for service in self._services.all():
                address, meta = service["spec"].get("clusterIP"), service["metadata"]
                if address not in (None, "", "None") and not is_withdrawn(service, CLUSTER_IP_SERVED):
                    long = f"{meta['name']}.{meta['namespace']}"
                    short = [meta["name"]] if meta["namespace"] == file.name else []
                    lines.append(" ".join([address, *short, long, f"{long}.svc", f"{long}.svc.cluster.local"]))
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
