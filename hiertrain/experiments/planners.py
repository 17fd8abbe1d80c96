"""Ways to a plan, compared: the scheduler, the paper's way, and trying every plan.

Times of plans are predicted; times of solving are measured on this computer.
"""

import time
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import pandas as pd

from hiertrain.cost.bounds import Boxes, Evaluator, Integers
from hiertrain.planning.heuristic import Candidate
from hiertrain.planning.lp_rounding import enumerate_and_round
from hiertrain.planning.optimize import optimize
from hiertrain.planning.trees import depth_grid, least_depth, sample_ranges, trees
from hiertrain.problem.chain import Layer
from hiertrain.problem.network import Link, Network
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.problem.solution import Shape
from hiertrain.program.simulator import iteration_s
from hiertrain.values import InputError

# Workers of synthetic problems, and how many times as long as the edge's their layers take.
SPEEDS = {"device": 4.0, "edge": 1.0, "cloud": 0.4, "edge-2": 1.5}


@dataclass(frozen=True)
class Tried:
    """What trying every plan comes to."""

    best_s: float
    plans: int
    solve_s: float


def try_every_plan(problem: Problem, shape: Shape) -> Tried:
    """The least time of all plans of a shape, infinite where there is none. Memory grows with the number of plans."""
    started, best_s, plans = time.monotonic(), np.inf, 0
    layers = problem.profile.chain.depth
    allowed = np.arange(least_depth(problem), layers + 1)
    for tree in trees(problem, shape):
        depths = depth_grid(tree, allowed, layers)
        splits = _splits(*sample_ranges(problem, tree), problem.batch_size)
        samples = np.tile(splits, depths.shape[1])
        depths = np.repeat(depths, splits.shape[1], axis=1)
        bounds_s = Evaluator(problem, tree).bounds_s(Boxes(depths, samples, samples))
        plans += len(bounds_s)
        # A bound is the plan's time, but where iterations overlap: there it may be below.
        for place in np.argsort(bounds_s):
            if bounds_s[place] >= best_s:
                break
            candidate = Candidate(tree, tuple(depths[:, place].tolist()), tuple(samples[:, place].tolist()))
            best_s = min(best_s, iteration_s(problem, candidate.plan(problem)))
    return Tried(best_s, plans, time.monotonic() - started)


def _splits(low: Integers, high: Integers, total: int) -> Integers:
    """All numbers of samples within the ranges that add up to the total; (k, P)."""
    counts = product(*(range(a, b + 1) for a, b in zip(low[1:], high[1:], strict=True)))
    others = np.array(list(counts), dtype=int).T
    splits = np.concatenate([total - others.sum(axis=0, keepdims=True), others])
    return splits[:, (splits[0] >= low[0]) & (splits[0] <= high[0])]


def compare_ways(problem: Problem, repetitions: int = 1) -> pd.DataFrame:
    """One row per repetition and way: "trees" and "stars" are the scheduler's, "programmes" is the paper's.

    All search with the paper's costs. ``bound_ms``: no plan of the way's shape is faster. ``programmes``: that were
    solved, 0 for the scheduler's ways.
    """
    linear = replace(problem, profile=problem.profile.linear_at(problem.batch_size))
    rows = []
    for repetition in range(repetitions):
        tree, star = (optimize(linear, shape=shape, seed=repetition) for shape in ("tree", "star"))
        rounded = enumerate_and_round(linear)
        for way, found, bound_s, programmes in (
            ("trees", tree, tree.bound_s, 0),
            ("stars", star, star.bound_s, 0),
            ("programmes", rounded, rounded.relaxed_s, rounded.programmes),
        ):
            rows.append(
                {
                    "repetition": repetition,
                    "way": way,
                    "solve_s": found.solve_s,
                    "objective_ms": found.objective_s * 1e3,
                    "bound_ms": bound_s * 1e3,
                    "workers": sum(found.plan.active(name) for name in found.plan.workers),
                    "programmes": programmes,
                }
            )
    return pd.DataFrame(rows)


def synthetic_problem(layers: int, batch_size: int, workers: int, seed: int) -> Problem:
    """A random problem like a convolutional net's: along the chain, times and outputs fall, parameters rise.

    Rates are random, too, and such that good plans use several workers. Raises InputError unless there are 1 to 4.
    """
    if not 1 <= workers <= len(SPEEDS):
        raise InputError(f"synthetic problem with {workers} workers: must be 1 to {len(SPEEDS)}")
    random, position = np.random.default_rng(seed), np.arange(1, layers + 1) / layers
    fixed_s = 1e-4 * random.uniform(0.5, 1.5, layers)
    sample_s = 8e-3 / layers * (1.2 - position) * random.uniform(0.5, 1.5, layers)
    output = 1e4 * (1 - position) ** 2 * random.uniform(0.5, 1.5, layers)
    parameters = 6e6 / layers * position**3 * random.uniform(0.5, 1.5, layers)
    sizes = tuple(
        Layer(name=f"layer{i}", output_bytes=int(output[i - 1]), parameter_bytes=int(parameters[i - 1]))
        for i in range(1, layers + 1)
    )
    costs = [
        LayerTimes(
            forward=LayerCost(fixed_s=fixed, per_sample_s=each),
            backward=LayerCost(fixed_s=fixed, per_sample_s=2 * each),
            update_s=fixed,
        )
        for fixed, each in zip(fixed_s.tolist(), sample_s.tolist(), strict=True)
    ]
    edge, names = WorkerProfile(layers=tuple(costs)), list(SPEEDS)[:workers]
    profile = Profile(
        model=f"synthetic-{seed}",
        sample_bytes=3072,
        layers=sizes,
        workers={name: edge.scaled(SPEEDS[name] * random.uniform(0.5, 1.5)) for name in names},
    )
    links = tuple(
        Link(source=a, target=b, bandwidth_mbps=10 ** random.uniform(0.7, 1.7), latency_ms=2.0)
        for a, b in permutations(names, 2)
    )
    return Problem(profile, Network(links=links), batch_size, "device")
