"""`RUN pip install …` of a Dockerfile, as a Python environment of this machine.

Decides which of these lines are supported, and whether the running Python satisfies them already; otherwise it makes a
virtual environment in the cache. Like a layer of Docker, the environment is made anew when the line changes, or a file
that was copied before it. pip installs, with the machine's own package index settings.
"""

import fcntl
import hashlib
import io
import os
import posixpath
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from prefect_cd_local.archives import OutsideError, inside, unpack
from prefect_cd_local.dockerfile import Instruction, substituted

_UNDERSTOOD = frozenset({
    "--no-cache-dir", "--quiet", "-q", "--no-deps", "--disable-pip-version-check", "--no-input", "--require-hashes",
    "--no-compile", "--prefer-binary",
})  # fmt: skip
_MEANINGLESS_HERE = frozenset({"--break-system-packages", "--root-user-action=ignore", "--upgrade", "-U"})
_WITH_FILE = frozenset({"-r", "--requirement", "-c", "--constraint"})


def provide(step: Instruction, layers: list[bytes], workdir: str, variables: Mapping[str, str]) -> Path:
    """Return the folder of an environment that has what a RUN line installs.

    Args:
        step: the RUN instruction.
        layers: the image so far; requirements files are read from there.
        workdir: where the line would run.
        variables: ARG and ENV so far.

    Raises:
        Refused: the line is not a supported `pip install`, or pip fails.
    """
    words = _installed(step, variables)
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        for layer in layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
                unpack(archive, Path(folder))
        place = _in_the_image(step, Path(folder), workdir)
        place.mkdir(parents=True, exist_ok=True)
        for flag, file in pairwise(words):
            if flag in _WITH_FILE and not _in_the_image(step, Path(folder), posixpath.join(workdir, file)).is_file():
                raise step.refuse(f"{workdir}/{file} is not in the image: COPY it first")
        if _pip(sys.executable, ["--dry-run", "--no-index", "--quiet", *words], place).returncode == 0:
            report(f"{step.where}: {sys.executable} has all of these packages: nothing is downloaded")
            return Path(sys.prefix)
        name = hashlib.sha256("\0".join([sys.version, sys.prefix, workdir, *words]).encode() + b"".join(layers))
        environment = _cache() / name.hexdigest()[:24]
        _make(step, environment, words, place)
    return environment


def _in_the_image(step: Instruction, folder: Path, path: str) -> Path:
    """A path of the image in the folder that the image was unpacked to."""
    try:
        return inside(folder, posixpath.normpath(path))
    except OutsideError as error:
        raise step.refuse(str(error)) from error


def report(text: str) -> None:
    """Print a line of the builder's output."""
    sys.stdout.write(f"{text}\n")


def _installed(step: Instruction, variables: Mapping[str, str]) -> list[str]:
    """Return the arguments of pip install; each file follows its flag."""
    line = " ".join(step.listed()) or substituted(step.text, variables)
    match = re.fullmatch(r"(?:python3? -m )?pip3? install ([^;&|<>`$()]*)", line)
    if not match:
        raise step.refuse(
            "the builder embedded runs `pip install -r FILE` only; docker, podman and buildah run everything"
        )
    arguments = re.sub(r"(--requirement|--constraint)=", r"\1 ", match[1])
    words = [word for word in shlex.split(arguments) if word not in _MEANINGLESS_HERE]
    for before, word in zip(["", *words], words, strict=False):
        package = re.match(r"[A-Za-z0-9][^/]*$", word)
        if not (package or before in _WITH_FILE or word in _UNDERSTOOD | _WITH_FILE):
            raise step.refuse(f"{word} is not supported by the builder embedded")
    return words


def _make(step: Instruction, environment: Path, words: list[str], place: Path) -> None:
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # builds of the same line at the same time make it once
        complete = environment / "complete"
        if complete.exists():
            report(f"{step.where}: using the existing virtual environment {environment}")
            return
        report(f"{step.where}: making the virtual environment {environment}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True, capture_output=True)
        ended = _pip(str(environment / "bin" / "python"), words, place)
        report(ended.stdout.strip())
        if ended.returncode:
            raise step.refuse(f"pip failed with exit code {ended.returncode}: {ended.stderr.strip()[-2000:]}")
        complete.touch()


def _pip(python: str, words: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-cd" / "environments"
