"""Run many requests at once, but not too many."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_MAX_CONCURRENT = 16
_T = TypeVar("_T")


async def parallel(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all, at most 16 at a time; results are in order.

    After the first error no further one starts. The error is raised when those that run have ended.
    """
    slots = asyncio.Semaphore(_MAX_CONCURRENT)
    errors: list[Exception] = []

    async def run(coroutine: Coroutine[Any, Any, _T]) -> _T | None:
        async with slots:
            if errors:
                coroutine.close()
                return None
            try:
                return await coroutine
            except Exception as error:  # noqa: BLE001  raised below, when all others have ended
                errors.append(error)
                return None

    results = await asyncio.gather(*(run(coroutine) for coroutine in coroutines))
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]  # without errors there is no None from above
