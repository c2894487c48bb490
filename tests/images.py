"""Build an image as the stages of a release do, for tests of the core."""

from collections.abc import Callable
from pathlib import Path

from prefect_cd.pipeline.models import ImageSettings
from prefect_cd.process import ignore
from prefect_cd.release import image
from prefect_cd.release.model import BuiltImage, Commit


def build(
    settings: ImageSettings, commit: Commit, tree: Path, *, on_line: Callable[[str], None] = ignore
) -> BuiltImage:
    """Look for the image, choose a builder, and build."""
    existing = image.find_image(settings, commit)
    return existing or image.build(settings, commit, tree, image.choose_builder(settings), on_line=on_line)
