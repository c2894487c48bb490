"""What holds for all tests: those that need what is not there are left out, and that is said."""

import os
import shutil
import subprocess

import pytest

_LEFT_OUT = pytest.StashKey[list[str]]()
_NEEDED = ("KUBECONFIG", "REGISTRY")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(resource, …): what `kubectl api-resources` of the cluster must list")
    config.stash[_LEFT_OUT] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = [f"{name} is not set" for name in _NEEDED if not os.environ.get(name)]
    missing += [] if shutil.which("kubectl") else ["kubectl is not installed"]
    if missing:
        on_a_cluster = [each for each in items if each.get_closest_marker("cluster")]
        _leave_out(config, items, on_a_cluster, " and ".join(missing))
        return
    wanted = {each: set(_needs(each)) for each in items if _needs(each)}
    missing_here = set().union(*wanted.values()) - _served() if wanted else set()
    for resource in sorted(missing_here):
        lacking = [each for each in items if resource in wanted.get(each, ())]
        _leave_out(config, items, lacking, f"this cluster serves no {resource}")


def _needs(item: pytest.Item) -> list[str]:
    return [resource for mark in item.iter_markers("needs") for resource in mark.args]


def _served() -> set[str]:
    command = ["kubectl", "api-resources", "--output=name"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def _leave_out(config: pytest.Config, items: list[pytest.Item], left_out: list[pytest.Item], reason: str) -> None:
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT].append(f"{len(left_out)} cluster tests left out: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_LEFT_OUT]:
        terminalreporter.write_line(line, yellow=True)
