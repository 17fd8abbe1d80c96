"""How one worker is reached: what each kind of testbed makes of its settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hiertrain.problem.network import Link


@dataclass(frozen=True)
class Host:
    """How one worker is reached."""

    command: Sequence[str]  # starts ``python -m hiertrain.worker`` there, its arguments still missing
    address: str  # that the other workers reach
    environment: Mapping[str, str] | None = None  # of the command; None: this process's own
    shape: Callable[[Sequence[Link]], None] = lambda _: None  # gives its links other rates, where the kernel has them
