"""HierTrain: hybrid-parallel training of one DNN on a device, an edge server and a cloud.

    from hiertrain import Link, Network, Problem, optimize, recorded_profile

    profile = recorded_profile("lenet5", {"device": 23.4, "edge": 5.4, "cloud": 2.0})  # times as slow as this one
    pairs = [(a, b) for a in profile.workers for b in profile.workers if a != b]
    links = tuple(Link(source=a, target=b, bandwidth_mbps=20, latency_ms=1) for a, b in pairs)
    print(optimize(Problem(profile, Network(links=links), batch_size=128, data_holder="device")).plan)

This is the face: the names that one works with, whatever room they are from; the rooms are mapped in CONTRIBUTING.md.
Nothing is imported before it is asked for, so that who only plans never waits for PyTorch, nor a worker for a solver.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same as HOMES, for editors and type checkers
    from hiertrain.experiments.grid import recorded_profile
    from hiertrain.files import load, save
    from hiertrain.planning.baselines import single_worker_plan
    from hiertrain.planning.optimize import optimize
    from hiertrain.planning.policies import find_policies
    from hiertrain.problem.execution import Execution
    from hiertrain.problem.network import Link, Network
    from hiertrain.problem.plan import Assignment, Plan
    from hiertrain.problem.problem import Problem
    from hiertrain.problem.profile import Profile
    from hiertrain.profiling.measure import measure_layers, measure_links
    from hiertrain.program.compiler import compile_plan
    from hiertrain.program.simulator import simulate
    from hiertrain.testbeds import find_testbed, open_testbed
    from hiertrain.testbeds.settings import kind_of_times
    from hiertrain.training.settings import training_settings
    from hiertrain.training.train import train
    from hiertrain.workload.architectures import build_model
    from hiertrain.workload.datasets import load_dataset
    from hiertrain.workload.modelfiles import save_model
    from hiertrain.workload.spec import ModelSettings, OptimizerSettings

__version__ = "0.1.0"
__all__ = [
    "Assignment",
    "Execution",
    "Link",
    "ModelSettings",
    "Network",
    "OptimizerSettings",
    "Plan",
    "Problem",
    "Profile",
    "build_model",
    "compile_plan",
    "find_policies",
    "find_testbed",
    "kind_of_times",
    "load",
    "load_dataset",
    "measure_layers",
    "measure_links",
    "open_testbed",
    "optimize",
    "recorded_profile",
    "save",
    "save_model",
    "simulate",
    "single_worker_plan",
    "train",
    "training_settings",
]
HOMES = {
    "experiments.grid": ["recorded_profile"],
    "files": ["load", "save"],
    "planning.baselines": ["single_worker_plan"],
    "planning.optimize": ["optimize"],
    "planning.policies": ["find_policies"],
    "problem.execution": ["Execution"],
    "problem.network": ["Link", "Network"],
    "problem.plan": ["Assignment", "Plan"],
    "problem.problem": ["Problem"],
    "problem.profile": ["Profile"],
    "profiling.measure": ["measure_layers", "measure_links"],
    "program.compiler": ["compile_plan"],
    "program.simulator": ["simulate"],
    "testbeds": ["find_testbed", "open_testbed"],
    "testbeds.settings": ["kind_of_times"],
    "training.settings": ["training_settings"],
    "training.train": ["train"],
    "workload.architectures": ["build_model"],
    "workload.datasets": ["load_dataset"],
    "workload.modelfiles": ["save_model"],
    "workload.spec": ["ModelSettings", "OptimizerSettings"],
}


def __getattr__(name: str) -> object:
    """Import what is asked for, once. Raises AttributeError for what the face does not have."""
    for module, names in HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
