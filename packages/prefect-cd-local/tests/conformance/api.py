"""Raw HTTP requests to an API server, and its answers."""

import base64
import json
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

Object = dict[str, Any]
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
STRATEGIC, JSON = "application/strategic-merge-patch+json", "application/json-patch+json"


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    warnings: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        return str(self.body.get("reason", ""))

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))

    @property
    def causes(self) -> list[tuple[str, str]]:
        return [(cause["field"], cause["reason"]) for cause in (self.body.get("details") or {}).get("causes") or ()]


class Api:
    """A server, and a namespace for the test."""

    def __init__(self, client: httpx.Client, namespace: str) -> None:
        self._client = client
        self.by_token = "Authorization" in client.headers
        self.namespace = namespace
        self.core = f"/api/v1/namespaces/{namespace}"
        self.apps = f"/apis/apps/v1/namespaces/{namespace}"
        self.leases = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ANN401  any JSON
        content: str = "application/json",
        **headers: str,
    ) -> Answer:
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = self._client.request(method, path, content=sent, headers={"Content-Type": content, **named})
        try:
            body = answer.json()
        except ValueError:
            body = answer.text
        return Answer(answer.status_code, body, answer.headers.get_list("Warning"))

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any) -> Answer:  # noqa: ANN401  any JSON
        """Create an object; retried while the namespace's service account does not exist yet."""
        end = time.monotonic() + 20
        while True:
            answer = self.ask("POST", path, body)
            if "error looking up service account" not in answer.message or time.monotonic() > end:
                return answer
            time.sleep(0.2)

    def apply(self, path: str, body: Object, manager: str, more: str = "") -> Answer:
        return self.ask("PATCH", f"{path}?fieldManager={manager}{more}", body, APPLY)

    def events(self, path: str) -> list[Object]:
        """Return all events of a watch that ends by itself."""
        with self._client.stream("GET", path) as answer:
            return [json.loads(line) for line in answer.iter_lines() if line]


def claims(item: Object) -> dict[str, Any]:
    """Return field ownership: "manager operation[/subresource]" → fields, without a real cluster's controllers."""
    return {
        f"{entry['manager']} {entry['operation']}"
        + (f"/{entry['subresource']}" if "subresource" in entry else ""): entry["fieldsV1"]
        for entry in item["metadata"].get("managedFields") or ()
        if not entry["manager"].startswith("kube-")
    }


def client_of(kubeconfig: Path) -> httpx.Client:
    """Return a client for the current context of a kubeconfig."""
    config = yaml.safe_load(kubeconfig.read_text())
    context = next(entry["context"] for entry in config["contexts"] if entry["name"] == config["current-context"])
    cluster = next(entry["cluster"] for entry in config["clusters"] if entry["name"] == context["cluster"])
    user = next(entry["user"] for entry in config["users"] if entry["name"] == context["user"])
    verify = ssl.create_default_context()
    if "certificate-authority-data" in cluster:
        verify = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    elif "certificate-authority" in cluster:
        verify = ssl.create_default_context(cafile=cluster["certificate-authority"])
    elif cluster.get("insecure-skip-tls-verify"):
        verify.check_hostname, verify.verify_mode = False, ssl.CERT_NONE
    if "client-certificate" in user:
        verify.load_cert_chain(user["client-certificate"], user["client-key"])
    elif "client-certificate-data" in user:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("certificate", "key")]
            for file, name in zip(files, ("client-certificate-data", "client-key-data"), strict=True):
                file.write_bytes(base64.b64decode(user[name]))
            verify.load_cert_chain(*files)
    headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
    return httpx.Client(base_url=cluster["server"], verify=verify, headers=headers, timeout=30, trust_env=False)
