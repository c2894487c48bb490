"""Whether this machine can isolate programs; tests that need it are left out where it cannot."""

from datetime import timedelta
from pathlib import Path

import pytest

from prefect_cd.errors import MissingTool
from prefect_cd.process import Isolation, run


def _refusal() -> str:
    """Why programs cannot be isolated; empty when they can."""
    try:
        run(["true"], cwd=Path("/"), env={}, timeout=timedelta(seconds=30), isolation=Isolation("network"))
    except MissingTool as error:
        return str(error)
    return ""


_REFUSAL = _refusal()
isolated = pytest.mark.skipif(bool(_REFUSAL), reason=f"this machine isolates no programs: {_REFUSAL}")
LEVELS = ["none", pytest.param("processes", marks=isolated)]
