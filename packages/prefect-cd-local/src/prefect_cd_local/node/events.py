"""Writes Events, in order, and not more often than a kubelet would.

A kubelet writes 25 events about one object at once, then one every five minutes (client-go, tools/record); so does the
recorder. Recording an event never makes a pod wait.
"""

import asyncio
import time
from collections import defaultdict

from prefect_cd_local.client import Client, Object

_BURST, _SECONDS_FOR_ONE = 25.0, 300.0
_LONGEST = 1024  # characters that an Event's message may have


class Recorder:
    """Writes events, one after the other."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: asyncio.Queue[tuple[Object, str, str, str, str, str]] = asyncio.Queue()
        self._allowance: dict[str, tuple[float, float]] = defaultdict(lambda: (_BURST, time.monotonic()))

    def event(
        self, subject: Object, kind: str, reason: str, message: str, field: str = "", component: str = "kubelet"
    ) -> None:
        """Record an event.

        Args:
            subject: the object that it is about.
            kind: `Normal` or `Warning`.
            reason: one CamelCase word.
            message: a sentence.
            field: the part of the object, `spec.containers{web}` for example.
            component: the reporting component.
        """
        if self._may(subject["metadata"]["uid"]):
            self._queue.put_nowait((subject, kind, reason, message[:_LONGEST], component, field))

    async def run(self) -> None:
        """Write recorded events until cancelled; events that the server refuses are dropped, as by a kubelet."""
        while True:
            await self._client.event(*await self._queue.get())

    def _may(self, uid: str) -> bool:
        left, since = self._allowance[uid]
        now = time.monotonic()
        left = min(left + (now - since) / _SECONDS_FOR_ONE, _BURST)
        self._allowance[uid] = left - (left >= 1), now
        return left >= 1
