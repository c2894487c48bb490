"""For all tests: which are left out because something is missing, and how they are shared out among workers."""

import os
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

_LEFT_OUT = pytest.StashKey[dict[str, None]]()  # a line for the summary -> None, in order
_NEEDED = ("KUBECONFIG", "REGISTRY")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(resource, …): what `kubectl api-resources` of the cluster must list")
    config.addinivalue_line("markers", "lacks(what): leave the test out, and say that this is missing")
    config.stash[_LEFT_OUT] = {}
    # on a busy machine, the time that an example takes says nothing; the rest is that of the current profile
    settings.register_profile("without-deadline", deadline=None)
    settings.load_profile("without-deadline")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lacking = {item: reason for item in items if (reason := lacks(item))}
    lacking |= lacking_resources([item for item in items if item not in lacking])
    if lacking:
        config.hook.pytest_deselected(items=list(lacking))
        items[:] = [item for item in items if item not in lacking]
    for reason, count in Counter(lacking.values()).items():
        config.stash[_LEFT_OUT][f"{count} tests left out: {reason}"] = None
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = longest_first(items)


def lacks(item: pytest.Item) -> str:
    """What the test needs and is missing; empty if nothing."""
    marker = item.get_closest_marker("lacks")
    if marker:
        return str(marker.args[0])
    if item.get_closest_marker("cluster"):
        missing = [f"{name} is not set" for name in _NEEDED if not os.environ.get(name)]
        missing += [] if shutil.which("kubectl") else ["kubectl is not installed"]
        return " and ".join(missing)
    return ""


def lacking_resources(items: list[pytest.Item]) -> dict[pytest.Item, str]:
    """The tests that need a resource which this cluster does not serve."""
    needed = {item: {name for mark in item.iter_markers("needs") for name in mark.args} for item in items}
    if not any(needed.values()):
        return {}
    command = ["kubectl", "api-resources", "--output=name"]
    served = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    missing = {item: ", ".join(sorted(names - served)) for item, names in needed.items()}
    return {item: f"this cluster serves no {names}" for item, names in missing.items() if names}


# ----------------------------------------------------------------------------------------------------------- workers


def longest_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Put the files first whose tests may take longest, as their `timeout` marks say; a worker plays a whole file.

    The highest limit of a file counts first: a hundred quick tests with a limit of a minute are not long. The scheduler
    keeps this order (`--no-loadscope-reorder`).
    """
    limits: defaultdict[Path, list[int]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("timeout")
        limits[item.path].append(int(marker.args[0]) if marker else 0)
    return sorted(items, key=lambda item: (-max(limits[item.path]), -sum(limits[item.path])))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = list(session.config.stash[_LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - of xdist
    """Take over what a worker left out: all workers leave out the same, and the controller collects nothing."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", [])
    node.config.stash[_LEFT_OUT] |= dict.fromkeys(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_LEFT_OUT]:
        terminalreporter.write_line(line, yellow=True)
