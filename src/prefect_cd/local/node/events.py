"""What is said about pods, as Events: in order, and not more often than a kubelet would.

A kubelet says 25 things at once about one object, then one every five minutes; that limit (client-go, tools/record) is
kept. Saying something never makes a pod wait.
"""

import asyncio
import time
from collections import defaultdict

from prefect_cd.local.client import Client, Object

_BURST, _SECONDS_FOR_ONE = 25.0, 300.0
_LONGEST = 1024  # characters that an Event's message may have


class Recorder:
    """Writes events, one after the other."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: asyncio.Queue[tuple[Object, str, str, str, str, str]] = asyncio.Queue()
        self._allowance: dict[str, tuple[float, float]] = defaultdict(lambda: (_BURST, time.monotonic()))

    def say(self, pod: Object, kind: str, reason: str, message: str, field: str = "", by: str = "kubelet") -> None:
        """Say something.

        Args:
            pod: whom it is about.
            kind: `Normal` or `Warning`.
            reason: one CamelCase word.
            message: a sentence.
            field: the part of the pod, `spec.containers{web}` for example.
            by: who says it.
        """
        if self._may(pod["metadata"]["uid"]):
            self._queue.put_nowait((pod, kind, reason, message[:_LONGEST], by, field))

    async def run(self) -> None:
        """Write what was said, until cancelled; what the server does not take is lost, as with a kubelet."""
        while True:
            await self._client.event(*await self._queue.get())

    def _may(self, uid: str) -> bool:
        left, since = self._allowance[uid]
        now = time.monotonic()
        left = min(left + (now - since) / _SECONDS_FOR_ONE, _BURST)
        self._allowance[uid] = left - (left >= 1), now
        return left >= 1
