"""What holds for all tests: those that need a cluster are left out where there is none, and that is said."""

import os

import pytest

_LEFT_OUT = pytest.StashKey[int]()
_NEEDED = ("KUBECONFIG", "REGISTRY")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if all(os.environ.get(name) for name in _NEEDED):
        return
    left_out = [item for item in items if item.get_closest_marker("cluster")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
    config.stash[_LEFT_OUT] = len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash.get(_LEFT_OUT, 0)
    if left_out:
        missing = " and ".join(name for name in _NEEDED if not os.environ.get(name))
        terminalreporter.write_line(f"{left_out} cluster tests left out: {missing} is not set", yellow=True)
