"""Where workers run and how links are shaped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from hiertrain.paths import NOTEBOOKS
from hiertrain.testbeds.host import Host
from hiertrain.testbeds.local import local_hosts
from hiertrain.testbeds.netns import missing, netns_hosts
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import AnySettings, LocalSettings, NetnsSettings, SshSettings, load_testbed
from hiertrain.testbeds.ssh import ssh_hosts
from hiertrain.values import InputError, Interrupted

AUTOMATIC = "auto"


def find_testbed(name: str) -> AnySettings:
    """The settings of a testbed file, given by its path, or by its name when it is in notebooks/testbeds.

    ``auto``: those of ``netns`` where this machine allows it, else of ``local``, which has the same workers and rates.
    Raises InputError for an unknown name, with the known ones, and as ``load_testbed`` does.
    """
    if Path(name).suffix or Path(name).name != name:
        return load_testbed(name)
    known = known_testbeds()
    file = ("local" if missing() else "netns") if name == AUTOMATIC else name
    if file not in known:
        raise InputError(
            f"testbed {name!r}: must be {', '.join((AUTOMATIC, *known))}, or the path of a testbed file such as own.yml"
        )
    return load_testbed(known[file])


def known_testbeds() -> dict[str, Path]:
    """The files of notebooks/testbeds by the names that ``find_testbed`` takes; examples have to be copied first."""
    paths = sorted((NOTEBOOKS / "testbeds").glob("*.yml"))
    return {path.stem: path for path in paths if not path.stem.endswith(".example")}


@contextmanager
def open_testbed(settings: AnySettings) -> Iterator[Testbed]:
    """A session on the testbed that ``settings`` describe: its workers run until the end of the ``with`` block.

    Raises InputError when this machine lacks what the testbed needs, WorkerError when a worker does not start, and
    Interrupted for a KeyboardInterrupt, when all has ended.
    """
    try:
        with hosts_of(settings) as hosts, Testbed(settings, hosts) as testbed:
            yield testbed
    except KeyboardInterrupt:
        raise Interrupted("interrupted; all workers have ended") from None


@contextmanager
def changing_testbed() -> Iterator[Callable[[AnySettings], Testbed]]:
    """A function that gives the testbed with these settings: opened by its first call, then only changed.

    What it raises is InputError and WorkerError.
    """
    with ExitStack() as stack:
        opened: list[Testbed] = []

        def testbed_at(settings: AnySettings) -> Testbed:
            if opened:
                opened[0].change(settings)
            else:
                opened.append(stack.enter_context(open_testbed(settings)))
            return opened[0]

        yield testbed_at


def hosts_of(settings: AnySettings) -> AbstractContextManager[Mapping[str, Host]]:
    """How each worker of the testbed that ``settings`` describe is reached. Raises InputError as ``open_testbed``."""
    match settings:
        case LocalSettings():
            return local_hosts(settings)
        case NetnsSettings():
            return netns_hosts(settings)
        case SshSettings():
            return ssh_hosts(settings)
