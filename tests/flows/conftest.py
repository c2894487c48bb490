"""The pipeline files that tests of flows serve."""

from pathlib import Path

import pytest

PIPELINE = """\
application: {name}
source: {{repository: https://example.org/{name}.git}}
image: {{name: registry.example.org/{name}}}
security: {{unauthenticated_server: allow}}
environments:
  - {{name: staging, namespace: {name}-staging, manifests: k8s/staging}}
  - {{name: production, namespace: {name}, manifests: k8s/production, approval: {{expires: 1h}}}}
"""


@pytest.fixture
def pipeline_file(tmp_path: Path) -> Path:
    """A pipeline file of the application shop."""
    return write(tmp_path, "shop")


def write(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(PIPELINE.format(name=name))
    return path
