"""Run many requests at once, but not too many."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_PARALLEL = 16
_T = TypeVar("_T")


async def parallel(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all, at most 16 at a time, in order.

    After the first error nothing more is begun; it is raised when those that run have ended.
    """
    slots = asyncio.Semaphore(_PARALLEL)
    errors: list[Exception] = []

    async def one(each: Coroutine[Any, Any, _T]) -> _T | None:
        async with slots:
            if errors:
                each.close()
                return None
            try:
                return await each
            except Exception as error:  # noqa: BLE001  raised below, when nothing runs any more
                errors.append(error)
                return None

    results = await asyncio.gather(*(one(each) for each in work))
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]  # without errors nothing was left out
