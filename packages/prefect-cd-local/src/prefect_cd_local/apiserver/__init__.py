"""A Kubernetes API server for tests: the real protocol over a store in memory, without controllers or nodes."""

from prefect_cd_local.apiserver.routes import Hooks
from prefect_cd_local.apiserver.server import ApiServer
from prefect_cd_local.apiserver.services import Ranges

__all__ = ["ApiServer", "Hooks", "Ranges"]
