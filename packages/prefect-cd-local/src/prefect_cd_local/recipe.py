"""Turn the instructions of a Dockerfile into an image, for the builder `embedded`.

Decides which instructions are carried out, ignored with a message, or refused with file and line. FROM is ignored,
because the machine that runs the image is its base; USER, too, because processes belong to the user that runs the node.
`python_environment` handles `RUN pip install`; every other RUN is refused. Equal files give equal layers, byte by byte.
Sources: docs.docker.com/reference/dockerfile; docs.docker.com/build/concepts/context for .dockerignore; opencontainers/
image-spec, config.md.
"""

import io
import json
import platform
import posixpath
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from pathspec import GitIgnoreSpec

from prefect_cd_local import python_environment
from prefect_cd_local.dockerfile import Instruction, Refused, read, substituted
from prefect_cd_local.images import MACHINE_LABEL, digest_of
from prefect_cd_local.python_environment import report

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64"}


class Recipe:
    """The state of an image while its Dockerfile is carried out.

    Args:
        context: the folder that COPY reads.
        arguments: values for ARG.
    """

    def __init__(self, context: Path, arguments: dict[str, str]) -> None:
        self.layers: list[bytes] = []
        self._context, self._arguments = context, arguments
        self._variables: dict[str, str] = {}
        self._environment = {"PATH": f"{Path(sys.executable).parent}:{_PATH}"}
        self._labels: dict[str, str] = {}
        self._needs = {sys.prefix, sys.base_prefix}
        self._config: dict[str, Any] = {"WorkingDir": "/"}
        self._started = False

    def follow(self, dockerfile: Path) -> None:
        """Carry out every instruction.

        Raises:
            Refused: this builder does not support one of them.
        """
        if dockerfile.is_relative_to(self._context) and not dockerfile.resolve().is_relative_to(self._context):
            raise Refused(f"{dockerfile.name} is a link out of the context")
        for step in read(dockerfile.read_text(encoding="utf-8"), dockerfile.name):
            if not self._started and step.name not in ("ARG", "FROM"):
                raise step.refuse("FROM must come first")
            if step.name not in self._INSTRUCTIONS:
                raise step.refuse("is not supported by the builder embedded; docker, podman and buildah support it")
            self._INSTRUCTIONS[step.name](self, step)
        if not self._started:
            raise Refused(f"{dockerfile.name}: FROM is missing")

    def configuration(self, labels: dict[str, str]) -> dict[str, Any]:
        """The image's configuration, with the folders of this machine that it needs in a label."""
        return {
            "architecture": _PROCESSORS.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                **self._config,
                "Env": [f"{key}={value}" for key, value in self._environment.items()],
                "Labels": {**self._labels, **labels, MACHINE_LABEL: json.dumps(sorted(self._needs))},
            },
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in self.layers]},
        }

    # --- instructions ---

    def _from(self, step: Instruction) -> None:
        if self._started:
            raise step.refuse("more than one stage is not supported by the builder embedded")
        self._started = True
        report(f"{step.where}: FROM {step.text} is ignored: the image is based on this machine and its Python")

    def _arg(self, step: Instruction) -> None:
        for word in step.words(self._variables):
            name, _, default = word.partition("=")
            if self._started:  # an ARG before FROM applies to FROM only
                self._variables[name] = self._arguments.get(name, default)

    def _env(self, step: Instruction) -> None:
        pairs = step.pairs({**self._variables, "PATH": self._environment["PATH"]})
        self._variables.update(pairs)
        self._environment.update(pairs)

    def _label(self, step: Instruction) -> None:
        self._labels.update(step.pairs(self._variables))

    def _workdir(self, step: Instruction) -> None:
        path = substituted(step.text, self._variables).strip("\"'")
        self._config["WorkingDir"] = posixpath.normpath(posixpath.join(self._config["WorkingDir"], path))

    def _copy(self, step: Instruction) -> None:
        words = step.words(self._variables)
        for flag in (word for word in words if word.startswith("--")):
            if not flag.startswith(("--chown=", "--link")):
                raise step.refuse(f"{flag} is not supported by the builder embedded")
            report(f"{step.where}: {flag} is ignored: files belong to the user that runs the node")
        *sources, target = [word for word in words if not word.startswith("--")] or [""]
        if not sources:
            raise step.refuse("write COPY SOURCE… TARGET")
        files = dict(self._files(step, sources, target))
        self.layers.append(_layer(files))
        report(f"{step.where}: COPY {step.text}: {len(files)} files")

    def _run(self, step: Instruction) -> None:
        folder = python_environment.provide(step, self.layers, self._config["WorkingDir"], self._variables)
        self._needs.add(str(folder))
        self._environment["PATH"] = f"{folder / 'bin'}:{self._environment['PATH']}"

    def _expose(self, step: Instruction) -> None:
        ports = {word if "/" in word else f"{word}/tcp": dict[str, str]() for word in step.words(self._variables)}
        self._config["ExposedPorts"] = {**self._config.get("ExposedPorts", {}), **ports}

    def _keep(self, step: Instruction) -> None:
        key = {"USER": "User", "STOPSIGNAL": "StopSignal", "CMD": "Cmd", "ENTRYPOINT": "Entrypoint"}[step.name]
        if step.name == "USER":
            report(f"{step.where}: USER {step.text} is ignored: processes belong to the user that runs the node")
        listed = step.name in ("CMD", "ENTRYPOINT")
        self._config[key] = step.command() if listed else " ".join(step.words(self._variables))

    def _healthcheck(self, step: Instruction) -> None:
        report(f"{step.where}: HEALTHCHECK is ignored, as Kubernetes does")

    def _files(self, step: Instruction, sources: list[str], target: str) -> Iterator[tuple[str, Path]]:
        """Yield names in the image and files of the context, in the order of their names."""
        base = posixpath.normpath(posixpath.join(self._config["WorkingDir"], target))
        out = ignored(self._context)
        for pattern in sources:
            relative = posixpath.normpath(pattern.lstrip("/") or ".")
            if ".." in relative.split("/"):
                raise step.refuse(f"{pattern} is outside the context")
            whole = relative == "."
            paths = [self._context] if whole else [path for path in self._context.glob(relative) if not out(path)]
            for path in paths:
                if not path.parent.resolve().is_relative_to(self._context.resolve()) and not whole:
                    raise step.refuse(f"{path.relative_to(self._context)} is behind a link out of the context")
            if not paths:
                raise step.refuse(f"{pattern} is not in the context, or .dockerignore excludes it")
            into = target.endswith(("/", ".")) or len(sources) + len(paths) > 2  # noqa: PLR2004 - one source and the target
            for path in sorted(paths):
                if path.is_dir() and not path.is_symlink():
                    for file in sorted(path.rglob("*")):
                        if (file.is_file() or file.is_symlink()) and not out(file):
                            yield posixpath.join(base, file.relative_to(path).as_posix()), file
                else:
                    yield posixpath.join(base, path.name) if into else base, path

    _INSTRUCTIONS: ClassVar[dict[str, Callable[["Recipe", Instruction], None]]] = {
        "FROM": _from, "ARG": _arg, "ENV": _env, "LABEL": _label, "WORKDIR": _workdir, "COPY": _copy, "RUN": _run,
        "EXPOSE": _expose, "HEALTHCHECK": _healthcheck, "USER": _keep, "STOPSIGNAL": _keep, "CMD": _keep,
        "ENTRYPOINT": _keep,
    }  # fmt: skip


def ignored(context: Path) -> Callable[[Path], bool]:
    """Return a predicate for paths in the context: whether .dockerignore excludes them.

    Its patterns are those of .gitignore with one difference: they are relative to the context's top.
    """
    file = context / ".dockerignore"
    if not file.resolve().is_relative_to(context.resolve()):
        raise Refused(f"{file.name} is a link out of the context")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rules = GitIgnoreSpec.from_lines(_from_the_top(line.strip()) for line in lines)
    return lambda path: rules.match_file(path.relative_to(context).as_posix())


def _from_the_top(line: str) -> str:
    if not line or line.startswith("#"):
        return ""
    sign = "!" if line.startswith("!") else ""
    return f"{sign}/{line.removeprefix('!').strip().strip('/')}"


def _layer(files: dict[str, Path]) -> bytes:
    """Make a tar archive that depends on names, contents and the executable bit only."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, file in sorted(files.items()):
            member = tarfile.TarInfo(name.lstrip("/"))  # owned by root, without a time
            if file.is_symlink():
                member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, str(file.readlink())
                archive.addfile(member)
            else:
                content = file.read_bytes()
                member.size, member.mode = len(content), 0o755 if file.stat().st_mode & 0o100 else 0o644
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
