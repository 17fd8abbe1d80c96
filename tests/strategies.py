"""Small random problems and plans, feasible by construction."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations, product
from typing import get_args

import numpy as np
from hypothesis import strategies as st

from hiertrain.cost.bounds import Boxes
from hiertrain.planning.heuristic import Candidate
from hiertrain.planning.trees import depth_grid, sample_ranges
from hiertrain.problem.chain import Layer
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Bend, LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.problem.tree import Tree
from tests.oracles import needed_bytes

# Every combination of the options: whoever adds one is tested with all others.
OPTIONS = {name: get_args(field.annotation) or (False, True) for name, field in Execution.model_fields.items()}
EXECUTIONS = [
    Execution.model_validate(dict(zip(OPTIONS, values, strict=True))) for values in product(*OPTIONS.values())
]
PAPER = (Execution.paper(),)

# Those that send float32, as policies are asked for: some of them send 8 bits by themselves.
PLAIN = tuple(own for own in EXECUTIONS if own.activation_encoding == own.parameter_encoding == "float32")
NAMES = ("device", "edge", "cloud", "cloud-2")

# Zero costs, equal workers and huge ratios are the corners where a solver or a formula goes wrong.
seconds = st.sampled_from([0.0, 1e-6, 1e-3, 2e-3, 0.5]) | st.floats(0.0, 1.0)
sizes = st.sampled_from([0, 4, 1000]) | st.integers(0, 250_000).map(lambda numbers: 4 * numbers)  # as of float32


def meeting(executions: Sequence[Execution]) -> list[Execution]:
    """A few of them in which any two values of two options still meet."""
    pairs = {own: set(combinations(dict(own).items(), 2)) for own in executions}
    few: list[Execution] = []
    left = set().union(*pairs.values())
    while left:
        few.append(max(pairs, key=lambda own: len(pairs[own] & left)))
        left -= pairs[few[-1]]
    return few


@st.composite
def layer_times(draw: st.DrawFn, *, linear: bool = False) -> LayerTimes:
    def cost() -> LayerCost:
        bends = draw(st.sampled_from([[], [], [], [1], [3], [2, 5], [1, 4, 6]])) if not linear else []
        return LayerCost(
            fixed_s=0.0 if linear else draw(seconds),
            per_sample_s=draw(seconds),
            bends=tuple(Bend(above=samples, per_sample_s=draw(seconds)) for samples in bends),
        )

    return LayerTimes(forward=cost(), backward=cost(), update_s=draw(seconds))


@st.composite
def profiles(draw: st.DrawFn, *, workers: int = 3, max_layers: int = 6) -> Profile:
    depth = draw(st.integers(1, max_layers))
    layers = [
        Layer(
            name=f"layer{i}",
            output_bytes=draw(sizes),  # of the last one, which is the loss, nothing is sent
            parameter_bytes=draw(sizes),
            activation_bytes=draw(sizes),
        )
        for i in range(1, depth + 1)
    ]
    linear = draw(st.booleans())
    times = {
        name: WorkerProfile(layers=tuple(draw(layer_times(linear=linear)) for _ in layers)) for name in NAMES[:workers]
    }
    if draw(st.booleans()):  # equal workers
        times = dict.fromkeys(times, times["device"])
    return Profile(
        model="random",
        sample_bytes=draw(st.integers(1, 10**5)),
        compressed_sample_bytes=draw(st.integers(1, 10**5)),
        layers=tuple(layers),
        workers=times,
    )


@st.composite
def networks(draw: st.DrawFn, *, workers: int = 3) -> Network:
    rates = st.sampled_from([0.001, 1.0, 20.0, 1e5]) | st.floats(0.1, 100.0)
    delays = st.sampled_from([0.0, 1.0, 100.0])
    # Smaller and larger than a message, and of the size of one.
    bursts = st.sampled_from([0.0, 0.0, 0.0, 1.0, 1000.0]) | st.integers(0, 5000).map(float)
    return Network(
        links=tuple(
            Link(source=a, target=b, bandwidth_mbps=draw(rates), latency_ms=draw(delays), burst_bytes=draw(bursts))
            for a in NAMES[:workers]
            for b in NAMES[:workers]
            if a != b
        )
    )


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    workers: int = 3,
    max_layers: int = 6,
    max_batch: int = 8,
    executions: Sequence[Execution] = EXECUTIONS,
) -> Problem:
    return Problem(
        profile=draw(profiles(workers=workers, max_layers=max_layers)),
        network=draw(networks(workers=workers)),
        batch_size=draw(st.integers(1, max_batch)),
        data_holder=draw(st.sampled_from(NAMES[:workers])),
        execution=draw(st.sampled_from(executions)),
    )


@st.composite
def sparse_problems(draw: st.DrawFn, *, workers: int = 3, max_layers: int = 3, max_batch: int = 4) -> Problem:
    """A problem whose workers are joined, but not each to each; some pass on what others send."""
    problem = draw(problems(workers=workers, max_layers=max_layers, max_batch=max_batch))
    order = draw(st.permutations(NAMES[:workers]))
    above = {name: draw(st.sampled_from(order[:place])) for place, name in enumerate(order) if place}
    pairs = {frozenset(edge) for edge in above.items()} | draw(
        st.sets(st.sampled_from([frozenset(pair) for pair in permutations(order, 2)]), max_size=1)
    )
    network = Network(
        links=tuple(link for link in problem.network.links if {link.source, link.target} in pairs),
        through={name: above[name] for name in draw(st.sets(st.sampled_from(sorted(above))))},
    )
    return replace(problem, network=network)


@st.composite
def plans(
    draw: st.DrawFn, *, names: tuple[str, ...], depth: int, batch_size: int, data_holder: str | None = None
) -> Plan:
    """Any plan: a random rooted tree, random depths, and samples on any workers of positive depth."""
    order = draw(st.permutations(names))
    parts: dict[str, Assignment] = {}
    left = batch_size
    for index, name in enumerate(order):
        parent = draw(st.sampled_from(order[:index])) if index else None
        limit = parts[parent].depth if parent else depth
        own_depth = draw(st.integers(0, limit)) if parent else depth
        samples = draw(st.integers(0, left)) if own_depth and index else 0
        left -= samples
        parts[name] = Assignment(parent=parent, depth=own_depth, samples=samples)
    root = parts[order[0]]
    parts[order[0]] = root.model_copy(update={"samples": left})
    holder = data_holder or draw(st.sampled_from(names))
    return Plan(batch_size=batch_size, data_holder=holder, workers={name: parts[name] for name in names})


@st.composite
def plans_of(draw: st.DrawFn, problem: Problem, tree: Tree) -> tuple[Boxes, Plan]:
    """A plan of the tree, and the box that holds it alone."""
    layers = len(problem.profile.layers)
    grid = depth_grid(tree, np.arange(1, layers + 1), layers)
    depths = grid[:, [draw(st.integers(0, grid.shape[1] - 1))]]
    low, high = sample_ranges(problem, tree)
    rest, free = problem.batch_size - int(low.sum()), np.flatnonzero(high)
    cuts = sorted(draw(st.integers(0, rest)) for _ in free[1:])
    low[free] += [b - a for a, b in pairwise([0, *cuts, rest])]
    samples = low[:, np.newaxis]
    plan = Candidate(tree, tuple(depths[:, 0].tolist()), tuple(low.tolist())).plan(problem)
    return Boxes(depths, samples, samples), plan


@st.composite
def planned_problems(draw: st.DrawFn) -> tuple[Problem, Plan]:
    """A problem and any plan for it."""
    workers = draw(st.integers(1, 4))
    problem = draw(problems(workers=workers))
    plan = draw(
        plans(
            names=NAMES[:workers],
            depth=len(problem.profile.layers),
            batch_size=problem.batch_size,
            data_holder=problem.data_holder,
        )
    )
    return problem, plan


@st.composite
def with_least_samples(draw: st.DrawFn, problem: Problem) -> Problem:
    """The problem with layers that take no fewer than some samples, of which the mini-batch has enough."""
    least = st.sampled_from([1, 1, 2, 3]).map(lambda samples: min(samples, problem.batch_size))
    layers = tuple(layer.model_copy(update={"least_samples": draw(least)}) for layer in problem.profile.layers)
    return replace(problem, profile=problem.profile.with_layers(layers))


@st.composite
def constrained_problems(draw: st.DrawFn, *, workers: int = 3, max_layers: int = 3, max_batch: int = 4) -> Problem:
    """A problem with constraints that may clash: memory limits near what a random plan needs, and samples enough."""
    problem = draw(with_least_samples(draw(problems(workers=workers, max_layers=max_layers, max_batch=max_batch))))
    problem = replace(problem, optimizer_copies=draw(st.integers(0, 2)))
    names, layers = NAMES[:workers], len(problem.profile.layers)
    samples_stay = draw(st.booleans())
    kept = {problem.data_holder} if samples_stay else set()
    excluded = draw(st.sets(st.sampled_from(names), max_size=workers - 1)) - kept
    free = [name for name in names if name not in excluded]
    plan = draw(plans(names=names, depth=layers, batch_size=problem.batch_size, data_holder=problem.data_holder))
    limited = draw(st.sets(st.sampled_from(names)))
    slack = draw(st.sampled_from([0.3, 0.9, 1.0, 1.0, 1.5]))
    limits = {name: max(1, int(slack * needed_bytes(problem, plan, name))) for name in sorted(limited)}
    return replace(
        problem,
        samples_stay=samples_stay,
        whole_model=draw(st.booleans()),
        excluded=frozenset(excluded),
        root=draw(st.sampled_from([None, None, *free])),
        memory_limit_bytes=limits,
    )


def slowed(problem: Problem, factors: Mapping[str, float]) -> Problem:
    """The problem with workers that many times as slow, also where no file may say so."""

    def cost(own: LayerCost, factor: float) -> LayerCost:
        bends = tuple(Bend.model_construct(above=b.above, per_sample_s=b.per_sample_s * factor) for b in own.bends)
        return LayerCost.model_construct(
            fixed_s=own.fixed_s * factor, per_sample_s=own.per_sample_s * factor, bends=bends
        )

    workers = {
        name: WorkerProfile(
            layers=tuple(
                LayerTimes.model_construct(
                    forward=cost(times.forward, factor),
                    backward=cost(times.backward, factor),
                    update_s=times.update_s * factor,
                )
                for times in problem.profile.worker(name).layers
            )
        )
        for name, factor in factors.items()
    }
    return replace(problem, profile=problem.profile.model_copy(update={"workers": workers}))


def many_workers(workers: int, layers: int = 4) -> Problem:
    """A fixed problem of alike workers at speeds as 1 : 1 / 1.7 : 1 / 2.4 ..; good plans use all of them."""
    names = [f"worker-{number}" for number in range(workers)]
    cost = LayerCost(fixed_s=0.0, per_sample_s=1e-3)
    base = WorkerProfile(layers=(LayerTimes(forward=cost, backward=cost, update_s=0.0),) * layers)
    sizes = tuple(Layer(name=f"layer{i}", output_bytes=1000, parameter_bytes=1000) for i in range(layers))
    times = {name: base.scaled(1 + 0.7 * number) for number, name in enumerate(names)}
    links = [Link(source=a, target=b, bandwidth_mbps=1000, latency_ms=0.1) for a, b in permutations(names, 2)]
    profile = Profile(model="alike", sample_bytes=100, layers=sizes, workers=times)
    return Problem(profile, Network(links=tuple(links)), 64, names[0])


def large_problem(layers: int, batch_size: int, cloud_mbps: float, seed: int, burst_bytes: float = 0.0) -> Problem:
    """A convolutional net's proportions: times fall and parameters rise along the chain. Speeds are as 20 : 5 : 2."""
    random = np.random.default_rng(seed)
    position = np.arange(1, layers + 1) / layers
    base_s = 4e-4 * (1.2 - position) * random.uniform(0.5, 1.5, layers)
    fixed_s = 1e-4 * random.uniform(0.5, 1.5, layers)
    sizes = [
        Layer(
            name=f"layer{i}",
            output_bytes=0 if i == layers else int(40_000 * (1 - i / (layers + 1)) ** 2) + 40,
            parameter_bytes=int(300_000 * position[i - 1] ** 3),
        )
        for i in range(1, layers + 1)
    ]

    def worker(factor: float) -> WorkerProfile:
        return WorkerProfile(
            layers=tuple(
                LayerTimes(
                    forward=LayerCost(fixed_s=factor * fixed, per_sample_s=factor * each),
                    backward=LayerCost(fixed_s=factor * fixed, per_sample_s=2 * factor * each),
                    update_s=factor * 1e-5,
                )
                for fixed, each in zip(fixed_s.tolist(), base_s.tolist(), strict=True)
            )
        )

    rates = {("device", "edge"): 30.0, ("edge", "cloud"): cloud_mbps, ("device", "cloud"): cloud_mbps}
    links = [
        Link(source=source, target=target, bandwidth_mbps=rate, latency_ms=5.0, burst_bytes=burst_bytes)
        for (a, b), rate in rates.items()
        for source, target in ((a, b), (b, a))
    ]
    return Problem(
        profile=Profile(
            model="large",
            sample_bytes=3072,
            layers=tuple(sizes),
            workers={"device": worker(4.0), "edge": worker(1.0), "cloud": worker(0.4)},
        ),
        network=Network(links=tuple(links)),
        batch_size=batch_size,
        data_holder="device",
    )
