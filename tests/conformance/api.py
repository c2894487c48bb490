"""Raw HTTP against an API server: what the tests of the protocol ask, and what they get to hear."""

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
        return [(each["field"], each["reason"]) for each in (self.body.get("details") or {}).get("causes") or ()]


class Api:
    """One server and a namespace of our own there."""

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
        named = {key.replace("_", "-"): each for key, each in headers.items()}
        answer = self._client.request(method, path, content=sent, headers={"Content-Type": content, **named})
        try:
            told = answer.json()
        except ValueError:
            told = answer.text
        return Answer(answer.status_code, told, answer.headers.get_list("Warning"))

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any) -> Answer:  # noqa: ANN401  any JSON
        """Create; what waits for its namespace's service account is asked again."""
        end = time.monotonic() + 20
        while True:
            answer = self.ask("POST", path, body)
            if "error looking up service account" not in answer.message or time.monotonic() > end:
                return answer
            time.sleep(0.2)

    def apply(self, path: str, body: Object, manager: str, more: str = "") -> Answer:
        return self.ask("PATCH", f"{path}?fieldManager={manager}{more}", body, APPLY)

    def events(self, path: str) -> list[Object]:
        """All events of a watch that ends by itself."""
        with self._client.stream("GET", path) as answer:
            return [json.loads(line) for line in answer.iter_lines() if line]


def claims(item: Object) -> dict[str, Any]:
    """Who owns what: "manager operation[/subresource]" → fields; controllers of a real cluster are left out."""
    return {
        f"{each['manager']} {each['operation']}" + (f"/{each['subresource']}" if "subresource" in each else ""): each[
            "fieldsV1"
        ]
        for each in item["metadata"].get("managedFields") or ()
        if not each["manager"].startswith("kube-")
    }


def client_of(kubeconfig: Path) -> httpx.Client:
    """A client as the current context of a kubeconfig says."""
    told = yaml.safe_load(kubeconfig.read_text())
    context = next(each["context"] for each in told["contexts"] if each["name"] == told["current-context"])
    cluster = next(each["cluster"] for each in told["clusters"] if each["name"] == context["cluster"])
    user = next(each["user"] for each in told["users"] if each["name"] == context["user"])
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
