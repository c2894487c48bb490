"""A commit tries to approve itself: by a process that stays, Prefect's API, our variables, what runs execute later."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex

import pytest
import yaml

from prefect_cd.errors import Errored, MissingTool
from prefect_cd.gates.evidence import Evidence, Outcome
from prefect_cd.gates.runner import run_check
from prefect_cd.pipeline.models import Check, Pipeline
from prefect_cd.process import Isolation, clean_environment
from tests.cluster.harness import PROGRAMS, Server, free_port, process, wait_for
from tests.isolation import LEVELS, isolated

pytestmark = pytest.mark.timeout(120)

APPROVAL = """\
application: shop
source: {repository: https://example.org/shop.git}
image: {name: registry.example.org/shop}
environments:
  - {name: production, namespace: shop, manifests: k8s/production, approval: {expires: 1h, approvers: [ada]}}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout."""
    folder = tmp_path / "tree"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("[core]\n")
    return folder


def check(tree: Path, program: str, isolation: Isolation, **variables: str) -> Evidence:
    """Run a Python program of the commit as a check."""
    (tree / "attack.py").write_text(program)
    return run_check(
        Check(name="unit tests", run=("python3", "attack.py"), environment=variables, timeout=timedelta(seconds=60)),
        tree,
        isolation=isolation,
    )


# ------------------------------------------------------------------------------------------- Prefect's API

DAEMON = """\
import os, sys, time, urllib.request
if os.fork():
    sys.exit()
os.setsid()
if os.fork():
    os._exit(0)
for descriptor in range(3):
    os.close(descriptor)
while os.path.exists("attack.py"):
    time.sleep(0.05)
body = b'{"run_input": {"decision": "approve", "approver": "ada"}}'
request = urllib.request.Request(os.environ["RESUME"], body, {"Content-Type": "application/json"})
urllib.request.urlopen(request)
"""


@pytest.mark.parametrize("level", LEVELS)
def test_a_process_that_a_check_leaves_behind_does_not_post_an_answer_later(
    prefect_server: Server, tree: Path, level: str
) -> None:
    run_id = paused_run(prefect_server)
    isolation = Isolation(level)  # type: ignore[arg-type]
    resume = f"{prefect_server.url}/api/flow_runs/{run_id}/resume"
    before = processes_with(resume)
    evidence = check(tree, DAEMON, isolation, RESUME=resume)
    assert evidence.outcome is Outcome.PASSED
    assert processes_with(resume) == before == set()
    (tree / "attack.py").unlink()  # the daemon waited for it
    assert state_of(prefect_server, run_id) == "PAUSED"


def paused_run(server: Server) -> str:
    """A flow run that waits for an answer."""
    flow = server.post("/flows/", {"name": "release"})["id"]
    run = server.post("/flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})["id"]
    server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "PAUSED", "name": "Suspended"}, "force": True})
    assert state_of(server, run) == "PAUSED"
    return str(run)


def state_of(server: Server, run: str) -> str:
    return str(server.get(f"/flow_runs/{run}")["state"]["type"])


def processes_with(value: str) -> set[str]:
    """The processes that have this value of an environment variable."""
    found = set()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if value.encode() in environment.read_bytes():
                found.add(environment.parent.name)
        except OSError:
            continue
    return found


@isolated
def test_a_check_without_network_cannot_reach_prefect(prefect_server: Server, tree: Path) -> None:
    attack = "import os, urllib.request; urllib.request.urlopen(os.environ['SERVER'])"
    assert (
        check(tree, attack, Isolation("processes"), SERVER=f"{prefect_server.url}/api/health").outcome is Outcome.PASSED
    )
    evidence = check(tree, attack, Isolation("network"), SERVER=f"{prefect_server.url}/api/health")
    assert evidence.outcome is not Outcome.PASSED
    assert "Connection refused" in evidence.output


@isolated
def test_a_check_without_network_can_use_its_own_loopback(tree: Path) -> None:
    program = "import socket as s; l = s.create_server(('127.0.0.1', 0)); s.create_connection(l.getsockname())"
    assert check(tree, program, Isolation("network")).outcome is Outcome.PASSED


def serve(server: Server, folder: Path, pipeline: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`prefect-cd serve` that is expected to refuse."""
    file = folder / "pipeline.yaml"
    file.write_text(pipeline)
    return subprocess.run(
        [PROGRAMS / "prefect-cd", "serve", file],
        env={**server.environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_approvals_are_not_served_where_everyone_can_approve(prefect_server: Server, tmp_path: Path) -> None:
    refused = serve(prefect_server, tmp_path, APPROVAL)
    assert refused.returncode == 1
    assert "answers without credentials" in refused.stderr
    assert "unauthenticated_server: allow" in refused.stderr


@pytest.mark.parametrize("status", [401, 403, 302, 500, 0])
def test_a_server_that_wants_credentials_is_recognised_by_its_answer_without_them(status: int) -> None:
    from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings  # noqa: PLC0415  takes seconds

    from prefect_cd.deployments.authentication import require_authentication  # noqa: PLC0415

    pipeline = Pipeline.model_validate(yaml.safe_load(APPROVAL))
    with answering(status) as (url, requests), temporary_settings({PREFECT_API_URL: url, PREFECT_API_KEY: "ours"}):
        if status in (401, 403, 302):
            require_authentication([pipeline])
        else:  # it did not say
            with pytest.raises(Errored):
                require_authentication([pipeline])
    assert not any("authorization" in headers for headers in requests)
    assert bool(requests) is bool(status)


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The URL of a server that gives every request this answer, 0: none, and the headers of the requests."""
    requests: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append({name.lower(): value for name, value in self.headers.items()})
            page = b"<html>Log in" if self.path == "/login" else b""
            self.send_response(HTTPStatus.OK if page else status)
            self.send_header("Location", "/login")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    if not status:
        yield f"http://127.0.0.1:{free_port()}/api", requests
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api", requests
        finally:
            server.shutdown()
            thread.join()


# ------------------------------------------------------------------------------------------- our environment

RUN = """\
import os, sys
from datetime import timedelta
from pathlib import Path
from prefect_cd.gates.runner import run_check
from prefect_cd.pipeline.models import Check
from prefect_cd.process import Isolation
evidence = run_check(
    Check(name="spy", run=("python3", "attack.py")), Path(sys.argv[1]), isolation=Isolation(sys.argv[2])
)
print(evidence.output)
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("user", [0, 65534])
def test_a_check_does_not_read_the_environment_of_the_process_that_started_it(
    tree: Path, level: str, user: int
) -> None:
    if os.geteuid() not in (0, user):
        pytest.skip("needs root to become another user")
    (tree / "attack.py").write_text(
        'import os\nfor pid in filter(str.isdigit, os.listdir("/proc")):\n'
        '    try:\n        content = open(f"/proc/{pid}/environ", "rb").read()\n'
        "    except OSError:\n        continue\n"
        '    print(pid, content.count(b"PREFECT_API_KEY=of-the-deployer"))\n'
    )
    open_to_all(tree)
    done = subprocess.run(
        [sys.executable, "-c", RUN, tree, level],
        env={**clean_environment(), "PREFECT_API_KEY": "of-the-deployer", "HOME": str(tree)},
        capture_output=True,
        text=True,
        check=False,
        user=user if os.geteuid() == 0 else None,
    )
    assert done.returncode == 0, done.stderr
    counts = [line.split()[1] for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert "0" in counts  # its own
    assert set(counts) == {"0"}


def open_to_all(folder: Path) -> None:
    """Let another user work in the folder."""
    for parent in (*folder.parents, folder):
        if parent.owner() == "root" and str(parent) != "/":
            parent.chmod(parent.stat().st_mode | 0o055)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)


@isolated
def test_a_check_sees_and_signals_no_other_process(tree: Path) -> None:
    with process(["sleep", "100"], dict(os.environ), tree.parent / "log") as victim:
        attack = f"import os; print(os.listdir('/proc').count('{victim.pid}')); os.kill({victim.pid}, 9)"
        evidence = check(tree, attack, Isolation("processes"))
        assert victim.poll() is None
    assert "ProcessLookupError" in evidence.output


# -------------------------------------------------------------------------------- files that are executed later


@isolated
def test_a_check_changes_no_file_outside_of_its_checkout(tree: Path, tmp_path: Path) -> None:
    package = tmp_path / "site-packages"
    package.mkdir()
    targets = [
        Path(sys.prefix) / f"prefect-cd-{token_hex(4)}.pth",
        Path.home() / f".prefect-cd-{token_hex(4)}",
        tree / ".git" / "hooks",
        tree / ".git" / "config",
        package / "x.py",
    ]
    attack = (
        "import sys, pathlib\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        pathlib.Path(path).write_text('[core]\\nsshCommand = evil')\n"
        "    except OSError as error:\n        print(error)\n"
        "pathlib.Path('result').write_text('written')\n"
    )
    (tree / "attack.py").write_text(attack)
    done = run_check(
        Check(name="x", run=("python3", "attack.py", *map(str, targets))), tree, isolation=Isolation("processes")
    )
    changed = [path for path in targets if path.exists()]
    for path in targets[:2]:
        path.unlink(missing_ok=True)
    assert done.outcome is Outcome.PASSED
    assert (tree / "result").read_text() == "written"
    assert (tree / ".git" / "config").read_text() == "[core]\n"
    assert changed == [tree / ".git" / "config"]


@isolated
def test_a_check_cannot_show_itself_what_is_hidden(tree: Path, tmp_path: Path) -> None:
    secret, folder = tmp_path / "kubeconfig", tmp_path / "prefect"
    folder.mkdir()
    secret.write_text("token: of-the-deployer")
    (folder / "profiles.toml").write_text("of-the-deployer")
    attack = (
        "import os, subprocess\n"
        f"paths = [{str(secret)!r}, {str(folder / 'profiles.toml')!r}]\n"
        "for path in paths:\n"
        "    subprocess.run(['umount', path]); subprocess.run(['umount', os.path.dirname(path)])\n"
        "    subprocess.run(['unshare', '--user', '--map-root-user', '--mount', 'umount', path])\n"
        "    for root in ('', '/proc/1/root', f'/proc/{os.getppid()}/root'):\n"
        "        try:\n            print(open(root + path).read())\n"
        "        except OSError as error:\n            print(error)\n"
    )
    evidence = check(tree, attack, Isolation("processes", hidden=(secret, folder)))
    assert evidence.outcome is Outcome.PASSED
    assert "of-the-deployer" not in evidence.output


@isolated
@pytest.mark.parametrize("name", ["HOME", "TMPDIR"])
def test_a_home_in_a_temporary_folder_or_one_in_a_cache_is_no_way_out_of_isolation(
    tree: Path, tmp_path: Path, name: str
) -> None:
    """The caches of such a home stay, its other files are not there; what is hidden in a cache stays hidden."""
    home = tmp_path / "home"
    (home / ".cache" / "ours").mkdir(parents=True)
    (home / ".cache" / "package").write_text("kept")
    (home / ".cache" / "ours" / "secret").write_text("of-the-deployer")
    (home / "other").write_text("of-the-deployer")
    variables = {"HOME": str(home), **({"TMPDIR": str(home / ".cache" / "tmp")} if name == "TMPDIR" else {})}
    (home / ".cache" / "tmp").mkdir()
    attack = (
        "import os, pathlib, tempfile\n"
        "home = pathlib.Path.home()\n"
        "print((home / '.cache' / 'package').read_text())\n"
        "(home / '.cache' / 'new').write_text('written')\n"
        "tempfile.NamedTemporaryFile()\n"
        "for path in (home / 'other', home / '.cache' / 'ours' / 'secret'):\n"
        "    assert not path.exists(), path\n"
    )
    hidden = (home / ".cache" / "ours",)
    evidence = check(tree, attack, Isolation("processes", hidden=hidden), **variables)
    assert evidence.outcome is Outcome.PASSED, evidence.output
    assert "kept" in evidence.output
    assert (home / ".cache" / "new").read_text() == "written"


def test_required_isolation_that_the_machine_does_not_allow_starts_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tree / "launcher.py"
    broken.write_text(
        "import json, os, sys\noptions = json.loads(sys.argv[1])\n"
        "os.write(options['report'], b'{\"refused\": \"no user namespaces\"}\\n')\n"
    )
    monkeypatch.setattr("prefect_cd.process._LAUNCHER", broken)
    with pytest.raises(MissingTool, match="no user namespaces"):
        check(tree, "open('started', 'w')", Isolation("processes"))
    assert not (tree / "started").exists()


def test_a_check_whose_run_is_killed_ends_with_it(tree: Path) -> None:
    (tree / "attack.py").write_text(
        "import os, time, pathlib\nos.fork() or os.setsid()\npathlib.Path('ready').touch()\n"
        "while True:\n    pathlib.Path('alive').touch()\n    time.sleep(0.02)\n"
    )
    deployer = subprocess.Popen([sys.executable, "-c", RUN, tree, "processes"])
    wait_for((tree / "ready").exists, "the check has not started")
    deployer.kill()
    deployer.wait()

    def has_ended() -> bool:
        (tree / "alive").unlink(missing_ok=True)
        time.sleep(0.3)
        return not (tree / "alive").exists()

    wait_for(has_ended, "the check goes on")


# ------------------------------------------------------------------------------------------------ stored results


@pytest.mark.parametrize(
    "serializer",
    [{"type": "pickle"}, {"type": "compressed/pickle"}, {"type": "json", "object_decoder": "subprocess.Popen"}],
    ids=lambda serializer: str(serializer["type"]),
)
def test_a_stored_result_that_was_changed_is_not_executed(
    prefect_server: Server,
    tmp_path: Path,
    serializer: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from prefect import flow, task  # noqa: PLC0415  takes seconds
    from prefect.cache_policies import INPUTS  # noqa: PLC0415
    from prefect.client.schemas.objects import State  # noqa: PLC0415
    from prefect.serializers import CompressedPickleSerializer, PickleSerializer  # noqa: PLC0415
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings  # noqa: PLC0415
    from prefect.states import Completed  # noqa: PLC0415

    from prefect_cd.flows.outcome import returning_state  # noqa: PLC0415
    from prefect_cd.tasks.stage import PERSISTED  # noqa: PLC0415

    assert prefect_server.process.poll() is None
    proof, played = tmp_path / "executed", list[str]()

    @task(**{**PERSISTED, "cache_policy": INPUTS})  # a second run stands for one that resumes
    def stage(name: str) -> str:
        played.append(name)
        return name

    @flow
    def release() -> State[None]:
        with returning_state() as outcome:
            stage("build")
            outcome.state = Completed()
        return outcome.state

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        assert release(return_state=True).name == "Completed"
        (file,) = (tmp_path / "results").iterdir()
        record = json.loads(file.read_text())
        record["metadata"]["serializer"] = serializer
        kind = {"pickle": PickleSerializer, "compressed/pickle": CompressedPickleSerializer}.get(serializer["type"])
        record["result"] = kind().dumps(Attack(proof)).decode() if kind else json.dumps({"touch": 0, str(proof): 0})
        file.write_text(json.dumps(record))
        assert release(return_state=True).name == "Completed"
    assert not proof.exists()
    assert played == ["build", "build"]
    assert "a stored result of this run was changed" in caplog.text + capsys.readouterr().err


class Attack:
    """Executes a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))
