"""The flows release, rollback and recover. Read them from top to bottom; how each stage works is in `tasks/`."""

__all__: list[str] = []
