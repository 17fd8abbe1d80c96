"""The SSH testbed: what reaches the remote shells, what its check finds, and training through real SSH servers."""

import ast
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from hiertrain.control.answers import Beat
from hiertrain.paths import NOTEBOOKS, ROOT
from hiertrain.problem.execution import Execution
from hiertrain.program.compiler import compile_plan
from hiertrain.testbeds import open_testbed, preflight
from hiertrain.testbeds.local import LOOPBACK
from hiertrain.testbeds.netns import INTERFACE, Namespace, namespaces
from hiertrain.testbeds.session import WorkerError
from hiertrain.testbeds.settings import SshSettings, SshWorker, load_testbed
from hiertrain.testbeds.ssh import PACKAGE, command_on, copy_command, find_problems, ssh_command
from hiertrain.training.settings import training_settings
from hiertrain.training.train import train_jobs
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import OptimizerSettings
from tests.processes import started
from tests.training.test_training import LENET, PLANS, TOLERANCE, TWO, WORKERS, instant_problem, largest_difference

SSHD = "/usr/sbin/sshd"  # insists on an absolute path
HOME = Path("/run/sshd")  # where it locks up its unprivileged part; Debian makes it when the service starts
RELAY = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection, socket.socket(fileno=1) as client:
    socket.send_fds(client, [b"0"], [connection.fileno()])
"""


def one_worker(timeout_s: float = 8.0, ssh_config: str | None = None, **fields: object) -> SshSettings:
    worker = SshWorker.model_validate({"host": "pi", "address": "10.0.0.1", "interface": "eth0", **fields})
    return SshSettings(data_holder="device", workers={"device": worker}, timeout_s=timeout_s, ssh_config=ssh_config)


def test_the_command_has_what_the_settings_say() -> None:
    settings = one_worker(20, "/etc/my config", user="me", port=2222, python="~/env/bin/python", folder="~/copy")
    ssh = ssh_command(settings, settings.workers["device"])
    assert ssh == (
        *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"),
        *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
        *("-F", "/etc/my config", "-p", "2222", "-l", "me"),
    )
    assert command_on(settings, settings.workers["device"], "-m", "hiertrain.worker") == (
        *(*ssh, "--", "pi"),
        "exec env GLOO_SOCKET_IFNAME=eth0 PYTHONSAFEPATH=1 MALLOC_MMAP_THRESHOLD_=2147483648 "
        "MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=67108864 PYTHONPATH=copy "
        "sh -c 'exec \"$@\"' sh env/bin/python -m hiertrain.worker",
    )
    assert copy_command(settings, settings.workers["device"], "~/copy")[-3:] == ("--", str(PACKAGE), "pi:copy/")
    settings = one_worker(host="fe80::1%eth0")
    assert copy_command(settings, settings.workers["device"], "~/copy")[-1] == "[fe80::1%eth0]:copy/"


def test_a_remote_shell_sees_words_only(tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    python = tmp_path / f'it\'s=é $(touch {bait.name}) "here"; ls\n&'
    python.write_text('#!/bin/sh\nprintf "%s|" "$PYTHONPATH" "$GLOO_SOCKET_IFNAME" "$@"\n')
    python.chmod(0o755)
    settings = one_worker(python=str(python), folder="a b;'c'")
    *_, words = command_on(settings, settings.workers["device"], "-c", "print('a')\n# \"$HOME\"")
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "a b;'c'|eth0|-c|print('a')\n# \"$HOME\"|"
    assert not bait.exists()


@pytest.mark.parametrize("timeout_s", [2.0, 3.5, 8.0, 9.0, 30.0, 600.0])
def test_a_lost_connection_ends_within_the_timeout(timeout_s: float) -> None:
    settings = one_worker(timeout_s)
    options = dict(part.split("=") for part in ssh_command(settings, settings.workers["device"]) if "=" in part)
    ends_s = int(options["ServerAliveInterval"]) * (int(options["ServerAliveCountMax"]) + 1)
    assert timeout_s / 2 < ends_s <= timeout_s


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"name 'a;b': must be 1 to 64 letters"):
        SshSettings(data_holder="a;b", workers={"a;b": SshWorker(host="pi", address="10.0.0.1", interface="eth0")})
    for field, value in (
        ("host", "-oProxyCommand=touch bait"),
        ("host", "../folder"),
        ("host", "pi /etc"),
        ("host", ""),
        ("host", "pi\0"),
        ("user", "-me"),
        ("interface", "`id`"),
        ("python", "-c"),
        ("python", ""),
        ("folder", "-e"),
        ("folder", "a\0b"),
    ):
        with pytest.raises(ValueError, match=rf"{field} .*: must be (letters, digits|a path)"):
            one_worker(**{"timeout_s": 8.0, field: value})
    for address in ("pi.local", "0.0.0.0", "10.0.0"):
        with pytest.raises(ValueError, match=f"address '{address}': must be an IPv4 address"):
            SshWorker(host="pi", address=address, interface="eth0")


def test_the_example_is_valid() -> None:
    settings = load_testbed(NOTEBOOKS / "testbeds" / "hosts.example.yml")
    assert tuple(settings.workers) == WORKERS
    assert settings.kind == "ssh"


def test_an_old_python_can_read_the_check() -> None:
    source = Path(preflight.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 4))
    imported = {a.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names}
    assert imported <= sys.stdlib_module_names


def test_a_missing_client_or_configuration_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_problems(one_worker(ssh_config=str(tmp_path / "none"))) == [f"ssh_config {tmp_path}/none: no such file"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="ssh is not installed on this machine"), open_testbed(one_worker()):
        pass


def test_what_reads_data_is_wanted_on_the_data_holder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "ssh", '#!/bin/sh\nfor words; do :; done\nexec sh -c "$words"\n')  # to this machine
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "scikit_learn-1.0.dist-info").mkdir()
    (tmp_path / "scikit_learn-1.0.dist-info" / "METADATA").write_text("Name: scikit-learn\nVersion: 1.0\n")
    python = executable(tmp_path / "old", f'#!/bin/sh\nexec env PYTHONPATH={tmp_path} {sys.executable} "$@"\n')
    machine = SshWorker(host="here", address="127.0.0.1", interface=LOOPBACK, python=python)
    assert find_problems(SshSettings(data_holder="edge", workers={"device": machine, "edge": machine})) == [
        f"worker edge on host here: package scikit-learn is version 1.0; must be {version('scikit-learn')} "
        "as on this machine"
    ]


@dataclass(frozen=True)
class Machines:
    """Three SSH servers, each in a network namespace of its own that only a proxy command of the user's reaches."""

    ssh_config: Path
    hosts: Mapping[str, Namespace]

    def settings(self, **changes: dict[str, object]) -> SshSettings:
        return self.settings_of(*self.hosts, **changes)

    def settings_of(self, *names: str, **changes: dict[str, object]) -> SshSettings:
        workers = {
            name: SshWorker.model_validate(
                {
                    "host": f"to-{name}",
                    "address": host.address,
                    "interface": INTERFACE,
                    "python": sys.executable,
                    **changes.get(name, {}),
                }
            )
            for name, host in self.hosts.items()
            if name in names
        }
        return SshSettings(data_holder="device", workers=workers, ssh_config=str(self.ssh_config))

    def python_processes(self, name: str) -> list[psutil.Process]:
        """Those that run on a machine."""
        space = os.readlink(self.hosts[name].enter[1].removeprefix("--net="))
        found = []
        for process in psutil.process_iter(["name"]):
            try:
                if "python" in process.info["name"] and os.readlink(f"/proc/{process.pid}/ns/net") == space:
                    found.append(process)
            except FileNotFoundError:  # it has just ended
                continue
        return found


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    lacking = [tool for tool in (SSHD, "ssh", "ssh-keygen") if not shutil.which(tool)]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "relay.py").write_text(RELAY)
    (folder / "ssh_config").write_text("Host nowhere\n  HostName 127.0.0.1\n  Port 1\n")
    (folder / "known_hosts").write_text("")
    with ExitStack() as stack:
        if not HOME.exists():
            HOME.mkdir(mode=0o755)
            stack.callback(HOME.rmdir)
        hosts = stack.enter_context(namespaces(WORKERS, ()))
        for name, host in hosts.items():
            stack.enter_context(server(host, folder))
            relay = shlex.join([*host.enter, sys.executable, str(folder / "relay.py"), "%h", "%p"])
            with (folder / "ssh_config").open("a") as config:
                config.write(
                    f"Host to-{name}\n  HostName {host.address}\n  User root\n  IdentitiesOnly yes\n"
                    f"  IdentityFile {folder}/user_key\n  UserKnownHostsFile {folder}/known_hosts\n"
                    f"  ProxyCommand {relay}\n  ProxyUseFdpass yes\n"
                )
            with (folder / "known_hosts").open("a") as known:
                known.write(f"{host.address} {(folder / 'host_key.pub').read_text()}")
        yield Machines(folder / "ssh_config", hosts)


@contextmanager
def server(host: Namespace, folder: Path) -> Iterator[None]:
    """An SSH server that runs in a namespace and lets the user's key in."""
    (folder / "sshd_config").write_text(
        f"ListenAddress {host.address}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPrintMotd no\n"
    )
    command = [*host.enter, SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            printed = []
            for line in process.stderr:
                printed.append(line)
                if line.startswith("Server listening"):
                    break
            else:
                pytest.fail(f"no SSH server: {''.join(printed)}")
            yield
        finally:
            process.terminate()


def executable(path: Path, script: str) -> str:
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


@pytest.mark.netns
def test_training_over_ssh_equals_single_process_sgd(machines: Machines) -> None:
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=0.9)
    with open_testbed(machines.settings()) as testbed:
        for execution in (Execution.paper(), Execution.overlapped()):
            assert largest_difference(testbed, PLANS["star"], LENET, "synthetic", optimizer, execution) < TOLERANCE
        assert all(machines.python_processes(name) for name in WORKERS)
    for name in WORKERS:
        assert not psutil.wait_procs(machines.python_processes(name), timeout=30)[1]


@pytest.mark.netns
def test_everything_that_is_wrong_is_named_at_once(machines: Machines, tmp_path: Path) -> None:
    old = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])"
    shutil.copytree(PACKAGE, tmp_path / "hiertrain", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "hiertrain" / "control" / "jobs.py").open("a") as source:
        source.write("# another version\n")
    (tmp_path / "numpy-1.0.dist-info").mkdir()
    (tmp_path / "numpy-1.0.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 1.0\n")
    changes: dict[str, dict[str, object]] = {
        "device": {
            "python": executable(tmp_path / "old", f'#!/bin/sh\nexec {sys.executable} -c "{old}" "$2"\n'),
            "interface": "wlan7",
        },
        "edge": {
            "python": executable(
                tmp_path / "other", f'#!/bin/sh\nexec env PYTHONPATH={tmp_path} {sys.executable} "$@"\n'
            ),
            "address": "10.77.0.9",
            "accelerator": "cuda",
        },
        "cloud": {"host": "nowhere"},
    }
    with pytest.raises(InputError) as caught, open_testbed(machines.settings(**changes)):
        pass
    message = str(caught.value)
    assert message.split("\nworker ") == [
        f"worker device on host to-device: interface 'wlan7' does not exist or has no IPv4 address; "
        f"there are lo (127.0.0.1), {INTERFACE} ({machines.hosts['device'].address})",
        f"device on host to-device: python '{tmp_path}/old' is version 3.9.2; must be at least 3.11",
        f"edge on host to-edge: interface '{INTERFACE}' has the address {machines.hosts['edge'].address}; "
        "must be the worker's, 10.77.0.9",
        f"edge on host to-edge: package numpy is version 1.0; must be {version('numpy')} as on this machine",
        f"edge on host to-edge: accelerator 'cuda': PyTorch {version('torch')} finds no GPU; there must be one",
        f"edge on host to-edge: package hiertrain in {tmp_path}/hiertrain differs in control/jobs.py; "
        "must be the same as on this machine",
        "cloud on host nowhere: cannot be reached: ssh: connect to host 127.0.0.1 port 1: Connection refused",
    ]


@pytest.mark.netns
def test_other_reasons_why_a_machine_cannot_be_used(machines: Machines, tmp_path: Path) -> None:
    changes: dict[str, dict[str, object]] = {
        "device": {"python": "python3.99"},
        "edge": {"python": executable(tmp_path / "talks", "#!/bin/sh\necho Welcome\n")},
        "cloud": {"python": executable(tmp_path / "fails", "#!/bin/sh\necho out of order >&2\nexit 3\n")},
    }
    problems = find_problems(machines.settings(**changes))
    assert [problem.partition(": ")[2] for problem in problems] == [
        "its Python does not run: sh: 1: exec: python3.99: not found",
        "prints 'Welcome' when a command is run; its login shell must print nothing of its own",
        "the check ended with status 3: out of order",
    ]


@pytest.mark.netns
def test_a_machine_that_hangs_is_given_up(machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertrain.testbeds.ssh.CHECK_LIMIT_S", 2.5)
    hangs = executable(tmp_path / "hangs", "#!/bin/sh\nexec cat > /dev/null\n")
    problems = find_problems(machines.settings(edge={"python": hangs}))
    assert "worker edge on host to-edge: does not answer within 2.5 s" in problems


@pytest.mark.netns
def test_a_blocked_port_is_named_on_both_sides(machines: Machines) -> None:
    edge, cloud = machines.hosts["edge"], machines.hosts["cloud"]

    def route(*arguments: str) -> str:
        command = [*edge.enter, "ip", "route", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before = route("show", f"{cloud.address}/32").split()
    route("replace", "blackhole", f"{cloud.address}/32")
    try:
        problems = find_problems(machines.settings())
    finally:
        route("replace", *before)
    assert len(problems) == 2
    assert problems[0].startswith(f"worker edge on host to-edge: no connection to worker cloud at {cloud.address}:")
    assert problems[1].startswith(f"worker cloud on host to-cloud: no connection to worker edge at {edge.address}:")
    assert problems[1].endswith("timed out; all TCP ports must be open between workers")


@pytest.mark.netns
@pytest.mark.skipif(not shutil.which("rsync"), reason="not installed: rsync")
def test_rsync_copies_the_package_and_a_worker_runs_from_it(machines: Machines, tmp_path: Path) -> None:
    folder = tmp_path / "a copy"
    settings = machines.settings(edge={"folder": str(folder)})
    (folder / "hiertrain" / "control").mkdir(parents=True)
    (folder / "hiertrain" / "control" / "jobs.py").write_text("an older version")
    (folder / "hiertrain" / "notes.txt").write_text("somebody's own")
    assert find_problems(settings) == []
    copied = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    sources = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    assert copied == sources | {"hiertrain/notes.txt"}
    where = command_on(settings, settings.workers["edge"], "-c", "import hiertrain; print(hiertrain.__file__)")
    done = subprocess.run(where, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert done.stdout.strip() == str(folder / "hiertrain" / "__init__.py")


@pytest.mark.netns
@pytest.mark.skipif(not shutil.which("rsync"), reason="not installed: rsync")
def test_rsync_that_does_not_work_is_named(machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, dict[str, object]] = {
        "device": {"folder": "/proc/none"},
        "cloud": {"folder": "copy", "host": "nowhere"},
    }
    problems = [problem.partition(": ")[2] for problem in find_problems(machines.settings(**changes))]
    assert len(problems) == 2
    assert problems[0].startswith("folder '/proc/none': rsync failed: rsync: ")
    assert problems[1] == "cannot be reached: ssh: connect to host 127.0.0.1 port 1: Connection refused"

    # A client that reaches a machine without rsync.
    executable(
        tmp_path / "ssh",
        f'#!/bin/sh\ncase "$*" in *"rsync --server"*) echo rsync: not found >&2; exit 127;; esac\n'
        f'exec {shutil.which("ssh")} "$@"\n',
    )
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
    (problem,) = find_problems(machines.settings(edge={"folder": "copy"}))
    assert problem.startswith("worker edge on host to-edge: folder 'copy': rsync failed: rsync: not found / ")

    monkeypatch.setenv("PATH", str(tmp_path))  # without an rsync on this machine
    (tmp_path / "ssh").unlink()
    for tool in ("ssh", "nsenter"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool, path=path)))
    assert find_problems(machines.settings(device={"folder": "copy"})) == [
        "worker device on host to-device: folder 'copy': rsync is not installed on this machine; "
        "the package must be copied there"
    ]


@pytest.mark.netns
def test_a_killed_remote_worker_ends_the_training_with_its_name(machines: Machines) -> None:
    dataset = load_dataset("synthetic")
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 12, Execution.overlapped())
    training = training_settings(LENET, dataset, 12, iterations=10**6)
    program = compile_plan(TWO, problem.profile.chain, problem.execution)
    killed_s: list[float] = []
    with open_testbed(machines.settings_of("device", "edge")) as testbed:

        def kill_edge(_: str, event: object, __: bytes) -> None:
            if isinstance(event, Beat) and event.iterations:
                for process in machines.python_processes("edge"):
                    process.kill()
                    killed_s.append(time.monotonic())

        with pytest.raises(WorkerError, match="worker edge is gone"):
            testbed.run(train_jobs(testbed, problem, program, training), on_event=kill_edge)
    assert time.monotonic() - killed_s[0] < 10
    for name in WORKERS:
        assert not psutil.wait_procs(machines.python_processes(name), timeout=30)[1]


@pytest.mark.netns
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_dead_parent_leaves_no_remote_worker_behind(machines: Machines, tmp_path: Path, how: signal.Signals) -> None:
    script = (
        "import sys\n"
        "from hiertrain.testbeds import open_testbed\n"
        "from hiertrain.testbeds.settings import load_testbed\n"
        "with open_testbed(load_testbed(sys.argv[1])):\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    testbed_file = tmp_path / "hosts.json"
    testbed_file.write_text(machines.settings_of("device", "edge").model_dump_json())
    with started(script, testbed_file) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "open\n"
        remote = [process for name in WORKERS for process in machines.python_processes(name)]
        assert len(remote) == 2
        parent.send_signal(how)
        parent.wait(30)
    assert not psutil.wait_procs(remote, timeout=30)[1]
