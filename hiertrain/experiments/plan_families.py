"""One plan of every family: what predictions are tested on. Pure.

A family is a tree of workers with a rule for depths and samples. Its plan here is the best of a coarse grid in which
every worker of the tree takes part, so that no family collapses into a smaller one.
"""

from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np

from hiertrain.problem.hierarchy import TIERS, of_tier
from hiertrain.problem.plan import Assignment, Plan, misfit
from hiertrain.problem.problem import Problem
from hiertrain.program.simulator import iteration_s

SHARES = 4  # own samples are multiples of this fraction of the mini-batch
DEPTHS = 8  # at most so many depths are tried per worker

Tree = Mapping[str, str | None]  # parent of each worker that takes part


def family_plans(problem: Problem) -> dict[str, Plan]:
    """The plans by the family's name, for the first worker of each tier. Raises InputError for a tier without any.

    One worker; two workers that split layers or samples; data-parallel; stars and chains of three. A family without
    any plan, because the mini-batch or the chain is too short for it, is left out.
    """
    device, edge, cloud = (of_tier(problem.profile.workers, tier)[0] for tier in TIERS)
    trees: dict[str, Tree] = {f"all-{name}": {name: None} for name in (device, edge, cloud)}
    for leaf, root in ((device, edge), (device, cloud), (edge, cloud)):
        for split in ("layers", "samples"):
            trees[f"{split}: {leaf}, {root}"] = {leaf: root, root: None}
    trees["data-parallel"] = {device: edge, cloud: edge, edge: None}
    for root, (short, long) in {edge: (device, cloud), cloud: (device, edge), device: (edge, cloud)}.items():
        trees[f"star to {root}"] = {short: root, long: root, root: None}
    for leaf, middle, root in ((device, edge, cloud), (cloud, edge, device), (device, cloud, edge)):
        trees[f"chain to {root} by {middle}"] = {leaf: middle, middle: root, root: None}
    best = {name: _best(problem, name, tree) for name, tree in trees.items()}
    return {name: plan for name, plan in best.items() if plan is not None}


def _best(problem: Problem, family: str, tree: Tree) -> Plan | None:
    plans = list(_grid(problem, family, tree))
    return min(plans, key=lambda plan: iteration_s(problem, plan), default=None)


def _grid(problem: Problem, family: str, tree: Tree) -> Iterator[Plan]:
    """All plans of the family on a coarse grid in which every worker of the tree computes something."""
    total = problem.profile.chain.depth
    *others, root = tree
    cuts = np.unique(np.linspace(1, total - 1, DEPTHS).round().astype(int)).tolist() if total > 1 else []
    depths = [total] if family.startswith(("data-parallel", "samples")) else cuts
    for chosen in product(depths, repeat=len(others)):
        depth = dict(zip(others, chosen, strict=True)) | {root: total}
        if any(parent and depth[name] > depth[parent] for name, parent in tree.items()):
            continue
        for samples in _splits(problem, family, list(tree)):
            parts = {
                name: Assignment(parent=parent, depth=depth[name], samples=samples[name])
                for name, parent in tree.items()
            }
            parts |= {
                name: Assignment(parent=root, depth=0, samples=0)
                for name in problem.profile.workers
                if name not in tree
            }
            plan = Plan(batch_size=problem.batch_size, data_holder=problem.data_holder, workers=parts)
            if misfit(plan, problem.profile.chain) is None:
                yield plan


def _splits(problem: Problem, family: str, names: list[str]) -> Iterator[dict[str, int]]:
    """Own samples per worker: all on the first where only layers are split, else some on every worker."""
    batch, first = problem.batch_size, names[0]
    if family.startswith("layers") or len(names) == 1:
        yield {name: batch if name == first else 0 for name in names}
        return
    unit = max(1, batch // SHARES)
    for shares in product(range(unit, batch, unit), repeat=len(names) - 1):
        rest = batch - sum(shares)
        if rest > 0:
            yield dict(zip(names, (*shares, rest), strict=True))
