"""The stories: release, rollback, recover. Read them from top to bottom; the mechanics are in the tasks."""

__all__: list[str] = []
