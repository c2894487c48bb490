"""Which log has the last words, and when nobody needs to be asked again."""

import asyncio

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.rollout.diagnosis import containers
from prefect_cd.rollout.watch import crash_logs
from prefect_cd.rollout.watch.crash_logs import CrashLogs, read_crash_log

ENDED = {"terminated": {"exitCode": 1}}
RUNS_AGAIN = {"state": {"running": {}}, "lastState": ENDED}
ENDED_ONCE = {"state": ENDED}


class Node:
    """Gives the answers of a script in their order: the previous run's log, the present one's, and again."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def logs(self, *_: object, **__: object) -> str | None:
        self.asked += 1
        return self.answers.pop(0) if self.answers else None


def words_of(status: Object, node: Node) -> str:
    pod = {"metadata": {"namespace": "n", "name": "p"}, "status": {"containerStatuses": [{"name": "c", **status}]}}
    (container,) = containers(pod)
    return asyncio.run(read_crash_log(node, container))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "answers", "words", "asked"),
    [
        (RUNS_AGAIN, ["it broke"], "it broke", 1),
        (RUNS_AGAIN, ["\x1b[31mit\x00 broke\n\tthere"], "[31mit broke\n\tthere", 1),
        (RUNS_AGAIN, ["." * 9000], "." * 4000, 1),
        (ENDED_ONCE, [None, "it broke"], "it broke", 2),
        (RUNS_AGAIN, [None, "", "it broke"], "it broke", 3),  # between two runs: the node is asked again
        (RUNS_AGAIN, ["", ""], "", 2),  # that run wrote nothing
        (ENDED_ONCE, [None, ""], "", 3),
        (ENDED_ONCE, [None, "", "it broke"], "it broke", 3),  # the next run began between two questions
        (ENDED_ONCE, [], "", 6),
        ({"state": {"waiting": {"reason": "ErrImagePull"}}}, ["never"], "", 0),
    ],
)
def test_the_node_is_asked_until_it_has_answered(
    status: Object, answers: list[str | None], words: str, asked: int
) -> None:
    node = Node(*answers)
    assert (words_of(status, node), node.asked) == (words, asked)


POD = {
    "metadata": {"namespace": "n", "name": "p", "uid": "u"},
    "status": {"containerStatuses": [{"name": "c", "state": ENDED}]},
}


def test_what_was_read_in_the_background_is_not_read_again() -> None:
    async def run() -> None:
        node = Node("it broke")
        words = CrashLogs(node)  # type: ignore[arg-type]
        told = asyncio.Event()
        assert words.of([POD], told.set) == ()
        (container,) = containers(POD)
        assert await words.said(container) == "it broke"
        await told.wait()
        assert [each.text for each in words.of([POD], told.set)] == ["it broke"]
        assert node.asked == 1
        await words.close()

    asyncio.run(run())


def test_a_mute_node_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        async def logs(self, *_: object, **__: object) -> str:
            await asyncio.sleep(9)
            return "too late"

    async def run() -> None:
        words = CrashLogs(Mute())  # type: ignore[arg-type]
        (container,) = containers(POD)
        assert await words.said(container) == ""
        await words.close()

    monkeypatch.setattr(crash_logs, "_PATIENCE_SECONDS", 0.05)
    asyncio.run(run())
