"""The problem whose answer is a plan: times, links, a mini-batch, and what the plan must keep to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, permutations

from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Network
from hiertrain.problem.profile import Profile
from hiertrain.values import BatchSize, InputError, MemoryBytes, check


@dataclass(frozen=True)
class Problem:
    """What the optimizer is asked. Raises InputError when the parts do not fit together."""

    profile: Profile
    network: Network
    batch_size: int
    data_holder: str
    execution: Execution = field(default_factory=Execution.paper)
    excluded: frozenset[str] = frozenset()  # workers that must not compute; an excluded data holder still sends
    root: str | None = None  # None: the optimizer chooses
    samples_stay: bool = False  # raw samples must not leave the data holder
    whole_model: bool = False  # every worker that computes must compute all layers: data parallelism
    memory_limit_bytes: Mapping[str, int] = field(default_factory=dict)
    optimizer_copies: int = 2  # of all weights that the optimizer keeps: Adam 2, SGD with momentum 1, plain SGD none

    def __post_init__(self) -> None:
        known = set(self.profile.workers)
        check("batch size", self.batch_size, BatchSize)
        greedy = max(self.profile.layers, key=lambda layer: layer.least_samples)
        if self.batch_size < greedy.least_samples:
            taken = f", which layer {greedy.name!r} takes" if greedy.least_samples > 1 else ""
            raise InputError(f"batch size {self.batch_size}: must be at least {greedy.least_samples}{taken}")
        if self.data_holder not in known:
            raise InputError(f"data holder {self.data_holder!r} is not in the profile; it has {_names(known)}")
        for name in (*self.excluded, *self.memory_limit_bytes, *([self.root] if self.root else [])):
            if name not in known:
                raise InputError(f"worker {name!r} is not in the profile; it has {_names(known)}")
        if not self.workers:
            raise InputError(f"excluded workers {_names(self.excluded)}: at least one worker must be left")
        if self.root in self.excluded:
            raise InputError(f"root {self.root!r} is excluded; the root must compute")
        if self.samples_stay and self.data_holder in self.excluded:
            raise InputError(f"raw samples must stay on {self.data_holder!r}, which is excluded; nobody can start them")
        if self.execution.sample_encoding == "zlib":
            self.profile.chain.sent_sample_bytes(self.execution)  # which must be known
        self._check_links()
        for name, limit in self.memory_limit_bytes.items():
            check(f"memory limit of {name!r} in bytes", limit, MemoryBytes)
        missing = [layer.name for layer in self.profile.layers if layer.activation_bytes is None]
        if self.memory_limit_bytes and missing:
            raise InputError(f"memory limits need activation_bytes of every layer; the profile lacks {missing[0]!r}'s")

    def _check_links(self) -> None:
        """Links lead both ways, and no worker is beyond the reach of the samples: else some were forgotten."""
        left, reached = {*self.workers, self.data_holder}, [self.data_holder]
        for source, target in permutations(sorted(left), 2):
            if self.network.find(target, source) is not None:
                self.network.link(source, target)
        for name in reached:  # grows while it is read
            left -= set(reached)
            reached += [other for other in sorted(left) if self.network.find(name, other) is not None]
        if left:
            raise InputError(f"network: no links join {min(left)!r} to {self.data_holder!r}, which has the raw samples")

    @property
    def unlinked(self) -> tuple[tuple[str, str], ...]:
        """The pairs of workers that cannot send each other anything."""
        pairs = combinations(dict.fromkeys((*self.workers, self.data_holder)), 2)
        return tuple(pair for pair in pairs if self.network.find(*pair) is None)

    def weight_copies(self, updates: bool) -> int:
        """How often a worker holds the weights of its layers: gradients count, and what the optimizer keeps there."""
        return 2 + self.optimizer_copies * updates

    @property
    def workers(self) -> tuple[str, ...]:
        """The workers that may compute, in the profile's order."""
        return tuple(name for name in self.profile.workers if name not in self.excluded)


def _names(names: "set[str] | frozenset[str]") -> str:
    return ", ".join(sorted(names))
