"""Load the Kubernetes client without its generated models: a third of the start time of `prefect-cd rollout`.

kubernetes_asyncio imports some 800 classes for the objects of the API with whatever is asked of it; we read JSON and
use none of them. Only a process that runs this command does so; where the library is built otherwise than expected,
it is loaded as always.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_LIBRARY = "kubernetes_asyncio"
_CLIENT, _MODELS = f"{_LIBRARY}.client", f"{_LIBRARY}.client.models"


def without_models() -> None:
    """Load what opens a connection, and nothing else; does nothing where the library is loaded already."""
    if _LIBRARY in sys.modules:
        return
    try:
        _load()
    except Exception:  # noqa: BLE001  whatever it is: it only costs the time that was to be saved
        for name in [name for name in sys.modules if name.partition(".")[0] == _LIBRARY]:
            del sys.modules[name]


def _load() -> None:
    spec = find_spec(_LIBRARY)
    folders = list(spec.submodule_search_locations or []) if spec else []
    library = _package(_LIBRARY, folders)
    client = _package(_CLIENT, [f"{folder}/client" for folder in folders])
    models = _package(_MODELS, [])
    vars(library).update(client=client)
    vars(client).update(
        models=models,
        Configuration=import_module(f"{_CLIENT}.configuration").Configuration,
        ApiClient=import_module(f"{_CLIENT}.api_client").ApiClient,
    )


def _package(name: str, folders: list[str]) -> ModuleType:
    """A package whose own file is not run, while its parts can be imported."""
    package = ModuleType(name)
    package.__path__ = folders
    sys.modules[name] = package
    return package


__all__ = ["without_models"]
