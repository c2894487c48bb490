"""A Kubernetes API server for development: the real protocol over an in-memory store, without controllers or nodes."""

from prefect_cd.local.apiserver.routes import Hooks
from prefect_cd.local.apiserver.server import ApiServer

__all__ = ["ApiServer", "Hooks"]
