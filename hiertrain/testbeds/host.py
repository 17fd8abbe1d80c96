"""How one worker is reached: what each kind of testbed makes of its settings."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from hiertrain.problem.network import Link


@dataclass(frozen=True)
class Piped:
    """A process on this machine that is spoken to over pipes: a worker, or what reaches another machine."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]  # what it printed besides; a file without a name, so that nothing is left of it whatever happens

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


@dataclass(frozen=True)
class Host:
    """How one worker is reached."""

    command: Sequence[str]  # starts ``python -m hiertrain.worker`` there, its arguments still missing
    address: str  # that the other workers reach
    environment: Mapping[str, str] | None = None  # of the command; None: this process's own
    shape: Callable[[Sequence[Link]], None] = lambda _: None  # gives its links other rates, where the kernel has them
