"""Which log is that of the failed run, and when it need not be requested again."""

import asyncio
from base64 import b64encode

import pytest

from prefect_cd.errors import Forbidden
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.diagnosis import containers
from prefect_cd.rollout.watch import crash_logs
from prefect_cd.rollout.watch.crash_logs import CrashLogs, read_crash_log

ENDED = {"terminated": {"exitCode": 1}}
RUNS_AGAIN = {"state": {"running": {}}, "lastState": ENDED}
ENDED_ONCE = {"state": ENDED}


class Node:
    """Answers in the order of a script: the log of the previous run, of the present one, and so on."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.requests = 0

    async def logs(self, *_: object, **__: object) -> str | None:
        self.requests += 1
        return self.answers.pop(0) if self.answers else None


def log_of(status: Object, node: Node) -> str:
    pod = {"metadata": {"namespace": "n", "name": "p"}, "status": {"containerStatuses": [{"name": "c", **status}]}}
    (container,) = containers(pod)
    return asyncio.run(read_crash_log(node, container))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "answers", "log", "requests"),
    [
        (RUNS_AGAIN, ["it broke"], "it broke", 1),
        (RUNS_AGAIN, ["\x1b[31mit\x00 broke\n\tthere"], "[31mit broke\n\tthere", 1),
        (RUNS_AGAIN, ["." * 9000], "." * 4000, 1),
        (ENDED_ONCE, [None, "it broke"], "it broke", 2),
        (RUNS_AGAIN, [None, "", "it broke"], "it broke", 3),  # between two runs: requested again
        (RUNS_AGAIN, ["", ""], "", 2),  # that run wrote nothing
        (ENDED_ONCE, [None, ""], "", 3),
        (ENDED_ONCE, [None, "", "it broke"], "it broke", 3),  # the next run began between two requests
        (ENDED_ONCE, [], "", 6),
        ({"state": {"waiting": {"reason": "ErrImagePull"}}}, ["never"], "", 0),
    ],
)
def test_a_log_is_requested_until_it_can_be_read(
    status: Object, answers: list[str | None], log: str, requests: int
) -> None:
    node = Node(*answers)
    assert (log_of(status, node), node.requests) == (log, requests)


POD = {
    "metadata": {"namespace": "n", "name": "p", "uid": "u"},
    "status": {"containerStatuses": [{"name": "c", "state": ENDED}]},
}


def test_a_log_that_was_read_in_the_background_is_not_read_again() -> None:
    async def run() -> None:
        node = Node("it broke")
        logs = CrashLogs(node)  # type: ignore[arg-type]
        read = asyncio.Event()
        assert logs.available([POD], read.set) == ()
        (container,) = containers(POD)
        assert await logs.read(container) == "it broke"
        await read.wait()
        assert [log.text for log in logs.available([POD], read.set)] == ["it broke"]
        assert node.requests == 1
        await logs.close()

    asyncio.run(run())


class NodeWithSecrets(Node):
    """A node and the API server's Secrets, by name."""

    def __init__(self, *answers: str | None, **secrets: str) -> None:
        super().__init__(*answers)
        self.secrets = {name.replace("_", "-"): value for name, value in secrets.items()}
        self.read: list[str] = []

    async def get(self, ref: Ref) -> Object | None:
        self.read.append(ref.name)
        if ref.name not in self.secrets:
            raise Forbidden("you may not read it")
        return {"data": {"value": b64encode(self.secrets[ref.name].encode()).decode()}}


USED = {
    "containers": [
        {
            "name": "c",
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "by-key", "key": "value"}}}],
            "envFrom": [{"secretRef": {"name": "whole"}}, {"secretRef": {"name": "forbidden"}}],
        }
    ],
    "volumes": [{"name": "v", "secret": {"secretName": "mounted"}}],
}


def test_i7_the_values_of_all_secrets_that_a_pod_uses_are_masked_in_its_log() -> None:
    values = {"by_key": "correct horse", "whole": "battery staple", "mounted": "line-one\nline-two"}
    node = NodeWithSecrets("cannot use correct horse, battery staple, line-two", **values)

    async def read() -> str:
        logs = CrashLogs(node)  # type: ignore[arg-type]
        (container,) = containers({**POD, "spec": USED})
        text = await logs.read(container)
        assert "battery staple" in logs.secrets.known
        await logs.close()
        return text

    assert asyncio.run(read()) == "cannot use ***, ***, ***"
    assert sorted(node.read) == ["by-key", "forbidden", "mounted", "whole"]


def test_i7_where_no_secret_can_be_read_a_password_is_masked_by_its_form() -> None:
    async def read() -> str:
        logs = CrashLogs(Node("cannot connect to postgres://shop:hunter22@db/shop"))  # type: ignore[arg-type]
        (container,) = containers(POD)
        text = await logs.read(container)
        await logs.close()
        return text

    assert asyncio.run(read()) == "cannot connect to postgres://shop:***@db/shop"


def test_a_node_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        async def logs(self, *_: object, **__: object) -> str:
            await asyncio.sleep(9)
            return "too late"

    async def run() -> None:
        logs = CrashLogs(Silent())  # type: ignore[arg-type]
        (container,) = containers(POD)
        assert await logs.read(container) == ""
        await logs.close()

    monkeypatch.setattr(crash_logs, "_PATIENCE_SECONDS", 0.05)
    asyncio.run(run())
