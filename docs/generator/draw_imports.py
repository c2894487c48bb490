"""Draws the packages and the imports between them, as an SVG.

The packages stand on a diagonal in the order of the `layers` contract of import-linter. An arrow leaves its package to
the right and enters the other one from above; a dot is an import. So every arrow runs down; an import upwards would be
a red dot to the left of its package. Packages and colours are those of import-linter's contracts, the arrows are read
from the code by grimp, as import-linter reads them; only the short texts are here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import grimp
from importlinter.api import read_configuration

PACKAGE = "prefect_cd"
TEXTS = {
    "deployments": "command, serve, schedules",
    "flows": "release, rollback, recover",
    "tasks": "one stage of a release each",
    "environment": "apply, records, lock, eligibility",
    "rollout.watch": "observes a rollout",
    "rollout.assess": "decides its verdict",
    "rollout.diagnosis": "explains its problems",
    "gates": "run tests, read what they proved",
    "manifests": "load, prepare, diff, lint",
    "release": "commit, image, registry",
    "kube": "alone talks to Kubernetes",
    "pipeline": "the pipeline file",
    "process": "alone runs programs",
    "launcher": "isolates a program",
    "http_client": "bounded answers of strangers",
    "errors": "what may go wrong, by code",
    "masking": "hides secrets",
    "untrusted_text": "makes control characters visible",
}
"""What stands under the name of each package."""

_WITH_PREFECT = ("deployments", "flows", "tasks")
_BOX = 198, 38  # width and height
_STEP = 62, 46  # from one package to the next, to the right and down
_MARGIN = 16
_COLORS = {"prefect": "#dbe7ff", "decisions": "#dcf3dd", "effects": "#fff0d1", "apart": "#eeeeee"}


def contracts_of(top: Path) -> list[dict[str, Any]]:
    """import-linter's contracts in pyproject.toml."""
    contracts: list[dict[str, Any]] = read_configuration(str(top / "pyproject.toml"))["contracts_options"]
    return contracts


def pure_packages(top: Path) -> set[str]:
    """The packages that consist of decisions: every module of theirs is under the contract about pure modules."""
    (modules,) = (contract["source_modules"] for contract in contracts_of(top) if "pure" in contract["name"])
    return {module.removeprefix(f"{PACKAGE}.") for module in modules}


def packages(top: Path) -> list[str]:
    """The packages and the modules beside them, in the order of the `layers` contracts in pyproject.toml."""
    contracts = contracts_of(top)
    layers = {contract["containers"][0]: contract["layers"] for contract in contracts if contract["type"] == "layers"}
    rollout = [f"rollout.{part}" for part in layers[f"{PACKAGE}.rollout"]]
    return [name for layer in layers[PACKAGE] for name in (rollout if layer == "rollout" else layer.split(" | "))]


def imports(names: Sequence[str]) -> set[tuple[str, str]]:
    """(importing package, imported package), for every import between two of them.

    The package's own `__init__` is left out: it only passes on the names of its public API.
    """
    graph = grimp.build_graph(PACKAGE)
    return {
        (importer, imported)
        for importer in names
        for imported in names
        if importer != imported and _modules(graph, importer) and _has_import(graph, importer, imported)
    }


def _modules(graph: grimp.ImportGraph, name: str) -> set[str]:
    module = f"{PACKAGE}.{name}"
    return {module, *graph.find_descendants(module)}


def _has_import(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    targets = _modules(graph, imported)
    return any(targets & graph.find_modules_directly_imported_by(module) for module in _modules(graph, importer))


def draw_imports(top: Path) -> str:
    """The SVG."""
    names, pure = packages(top), pure_packages(top)
    places = {name: (_MARGIN + index * _STEP[0], _MARGIN + index * _STEP[1]) for index, name in enumerate(names)}
    width = places[names[-1]][0] + _BOX[0] + _MARGIN
    height = places[names[-1]][1] + _BOX[1] + _MARGIN
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        "<title>The packages of prefect-cd and the imports between them</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_arrows(names, places, imports(names)),
        *(_box(name, places[name], _color(name, pure)) for name in names),
        *_legend(places[names[-1]][1] + _BOX[1]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrows(names: Sequence[str], places: dict[str, tuple[int, int]], arrows: set[tuple[str, str]]) -> Iterator[str]:
    """For each package one line to the right, for each imported one a line down into it, a dot where they meet."""
    entries = {name: places[name][0] + _BOX[0] - _STEP[0] // 2 for name in names}
    for name in names:
        y = places[name][1] + _BOX[1] // 2
        columns = [entries[imported] for importer, imported in arrows if importer == name]
        if columns:
            yield f'<path d="M{places[name][0] + _BOX[0]} {y}H{max(columns)}" stroke="#9aa3ad" fill="none"/>'
    for name in names:
        rows = [places[importer][1] + _BOX[1] // 2 for importer, imported in arrows if imported == name]
        x, end = entries[name], places[name][1]
        if rows:
            yield f'<path d="M{x} {min(rows)}V{end - 6}" stroke="#9aa3ad" fill="none"/>'
            yield f'<path d="M{x - 4} {end - 7}h8l-4 7z" fill="#3d4650"/>'
    for importer, imported in sorted(arrows):
        color = "#3d4650" if names.index(importer) < names.index(imported) else "#d00000"
        x, y = entries[imported], places[importer][1] + _BOX[1] // 2
        yield f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"><title>{importer} imports {imported}</title></circle>'


def _color(name: str, pure: set[str]) -> str:
    if name in _WITH_PREFECT:
        return _COLORS["prefect"]
    return _COLORS["decisions" if name in pure else "effects"]


def _box(name: str, place: tuple[int, int], color: str) -> str:
    x, y = place
    text = escape(TEXTS[name])
    return (
        f'<rect x="{x}" y="{y}" width="{_BOX[0]}" height="{_BOX[1]}" rx="5" fill="{color}" stroke="#6b7480"/>'
        f'<text x="{x + 9}" y="{y + 16}" font-weight="bold">{name.replace(".", "/")}</text>'
        f'<text x="{x + 9}" y="{y + 31}" font-size="11">{text}</text>'
    )


def _legend(bottom: int) -> Iterator[str]:
    """What the colours mean, and the distribution that stands apart; where the diagonal leaves space."""
    x, y = _MARGIN, bottom - 5 * 26
    entries = (
        ("prefect", "knows Prefect"),
        ("effects", "core: effects, with the decisions about them"),
        ("decisions", "core: decisions only"),
    )
    for index, (color, text) in enumerate(entries):
        top = y + index * 26
        yield f'<rect x="{x}" y="{top}" width="18" height="18" rx="3" fill="{_COLORS[color]}" stroke="#6b7480"/>'
        yield f'<text x="{x + 27}" y="{top + 13}">{text}</text>'
    top = y + 3 * 26
    yield f'<circle cx="{x + 9}" cy="{top + 9}" r="3.5" fill="#3d4650"/>'
    yield f'<text x="{x + 27}" y="{top + 13}">the package on the left imports the package below</text>'
    top = y + 4 * 26  # not a package of this distribution
    yield (
        f'<rect x="{x}" y="{top - 2}" width="450" height="28" rx="5" fill="{_COLORS["apart"]}" stroke="#6b7480" '
        'stroke-dasharray="4 3"/>'
        f'<text x="{x + 9}" y="{top + 16}"><tspan font-weight="bold">packages/prefect-cd-local</tspan> '
        "test cluster: no import in either direction</text>"
    )


__all__ = ["draw_imports", "imports", "packages"]
