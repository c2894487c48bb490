"""Which log is that of the failed run, and when it need not be requested again."""

import asyncio

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.rollout.diagnosis import containers
from prefect_cd.rollout.watch import crash_logs
from prefect_cd.rollout.watch.crash_logs import CrashLogs, read_crash_log
from prefect_cd.rollout.watch.secret_values import SecretValues

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
    return asyncio.run(read_crash_log(node, container, SecretValues(node)))  # type: ignore[arg-type]


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
        logs = CrashLogs(node, SecretValues(node))  # type: ignore[arg-type]
        read = asyncio.Event()
        assert logs.available([POD], read.set) == ()
        (container,) = containers(POD)
        assert await logs.read(container) == "it broke"
        await read.wait()
        assert [log.text for log in logs.available([POD], read.set)] == ["it broke"]
        assert node.requests == 1
        await logs.close()

    asyncio.run(run())


def test_a_node_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        async def logs(self, *_: object, **__: object) -> str:
            await asyncio.sleep(9)
            return "too late"

    async def run() -> None:
        logs = CrashLogs(Silent(), SecretValues(Silent()))  # type: ignore[arg-type]
        (container,) = containers(POD)
        assert await logs.read(container) == ""
        await logs.close()

    monkeypatch.setattr(crash_logs, "_PATIENCE_SECONDS", 0.05)
    asyncio.run(run())
