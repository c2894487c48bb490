"""`RUN pip install …` of a Dockerfile, as a Python environment of this machine.

Decides which such lines are understood, and whether the Python that runs us satisfies them already; else makes a
virtual environment in the cache. Like a layer of Docker, it is made anew when the line changes, or a file that was
copied before it. Installing is pip's own work, with the machine's own package index settings.
"""

import fcntl
import hashlib
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from prefect_cd.local.dockerfile import Instruction, filled

_UNDERSTOOD = frozenset({
    "--no-cache-dir", "--quiet", "-q", "--no-deps", "--disable-pip-version-check", "--no-input", "--require-hashes",
    "--no-compile", "--prefer-binary",
})  # fmt: skip
_MEANINGLESS_HERE = frozenset({"--break-system-packages", "--root-user-action=ignore", "--upgrade", "-U"})
_WITH_FILE = frozenset({"-r", "--requirement", "-c", "--constraint"})


def provide(step: Instruction, layers: list[bytes], workdir: str, variables: Mapping[str, str]) -> Path:
    """Have an environment with what a RUN line installs; returns its folder.

    Args:
        step: the RUN instruction.
        layers: the image so far; requirements files are read from there.
        workdir: where the line would run.
        variables: ARG and ENV so far.

    Raises:
        Refused: it is no `pip install` that we understand, or pip fails.
    """
    words = _installed(step, variables)
    with tempfile.TemporaryDirectory(prefix="prefect-cd-") as folder:
        for layer in layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
                archive.extractall(folder)  # noqa: S202 - our own archive
        place = Path(folder, workdir.lstrip("/"))
        place.mkdir(parents=True, exist_ok=True)
        for flag, file in pairwise(words):
            if flag in _WITH_FILE and not (place / file).is_file():
                raise step.refuse(f"{workdir}/{file} is not in the image yet: COPY it first")
        if _pip(sys.executable, ["--dry-run", "--no-index", "--quiet", *words], place).returncode == 0:
            say(f"{step.where}: {sys.executable} has all of it: nothing is downloaded")
            return Path(sys.prefix)
        name = hashlib.sha256("\0".join([sys.version, sys.prefix, workdir, *words]).encode() + b"".join(layers))
        environment = _cache() / name.hexdigest()[:24]
        _make(step, environment, words, place)
    return environment


def say(text: str) -> None:
    """Tell the person who reads the builder's output."""
    sys.stdout.write(f"{text}\n")


def _installed(step: Instruction, variables: Mapping[str, str]) -> list[str]:
    """The arguments of pip install, files after their flag."""
    line = " ".join(step.listed()) or filled(step.text, variables)
    found = re.fullmatch(r"(?:python3? -m )?pip3? install ([^;&|<>`$()]*)", line)
    if not found:
        raise step.refuse(
            "the builder embedded runs nothing but `pip install -r FILE`; docker, podman and buildah run everything"
        )
    given = re.sub(r"(--requirement|--constraint)=", r"\1 ", found[1])
    words = [word for word in shlex.split(given) if word not in _MEANINGLESS_HERE]
    for before, word in zip(["", *words], words, strict=False):
        package = re.match(r"[A-Za-z0-9][^/]*$", word)
        if not (package or before in _WITH_FILE or word in _UNDERSTOOD | _WITH_FILE):
            raise step.refuse(f"{word} is not understood by the builder embedded")
    return words


def _make(step: Instruction, environment: Path, words: list[str], place: Path) -> None:
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds of the same line make it once
        complete = environment / "complete"
        if complete.exists():
            say(f"{step.where}: the virtual environment {environment} is there already")
            return
        say(f"{step.where}: making the virtual environment {environment}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True, capture_output=True)
        ended = _pip(str(environment / "bin" / "python"), words, place)
        say(ended.stdout.strip())
        if ended.returncode:
            raise step.refuse(f"pip ends with {ended.returncode}: {ended.stderr.strip()[-2000:]}")
        complete.touch()


def _pip(python: str, words: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-cd" / "environments"
