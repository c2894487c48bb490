"""Lets `serve` start flow runs as forks: the only place that touches a private part of Prefect.

What it replaces: the function `run_process` in `prefect.runner._starter_engine`, with which Prefect's runner starts
`python -m prefect.engine` for each run. The docstring of its `EngineCommandStarter` says to patch it there.

Why: a new interpreter imports Prefect and the flows for seconds at every start of a run, and a run with an approval
starts twice; a fork has them loaded (`forkserver`). Prefect 3.9.1 offers no supported way to do this: `Runner` takes no
starter, no setting preloads anything, and `Runner.add_flow` starts a new interpreter for each run, too.

When Prefect changes: where the function is missing or has been moved, `install` logs a warning and Prefect starts runs
in its own way, which takes seconds longer for each. `make test-versions` runs the tests of this module with the newest
Prefect.
"""

import logging
from importlib import import_module

from prefect.utilities.processutils import run_process

from prefect_cd.deployments import forkserver

_STARTER = "prefect.runner._starter_engine"
_log = logging.getLogger("prefect.prefect_cd")


def install() -> bool:
    """Have Prefect's runner start runs as forks from now on; False where that is not possible."""
    if not forkserver.is_usable():
        return False
    try:
        starter = import_module(_STARTER)
        if starter.run_process is not run_process:
            raise AttributeError("run_process is not Prefect's own")
    except (ImportError, AttributeError) as error:
        _log.warning(
            "each run takes some seconds longer to start: this version of Prefect cannot start runs as forks (%s)",
            error,
        )
        return False
    vars(starter)["run_process"] = forkserver.ForkServer().run
    return True
