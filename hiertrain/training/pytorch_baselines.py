"""The same training as one would do it without this package, on a testbed's workers."""

from collections.abc import Sequence

from hiertrain.control.jobs import PIPELINES, Rival, RivalJob
from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.program.actions import Program
from hiertrain.testbeds.session import Testbed
from hiertrain.training.run import TrainingRun
from hiertrain.training.train import check_training, watch
from hiertrain.values import InputError
from hiertrain.workload.architectures import chain_of
from hiertrain.workload.spec import Training

RIVAL_TIMEOUT_S = 60.0  # for one message: a rival's iteration has no predicted time


def train_as_rival(testbed: Testbed, plan: Plan, training: Training, rival: Rival) -> TrainingRun:
    """Train as one would without this package, on the same workers: see ``runtime.pytorch_baselines``.

    ``plan`` says who has which samples (``ddp``) or layers (a pipeline). The program of the result is empty.
    Raises InputError when the plan is none that the rival could follow, or the testbed emulates, and WorkerError when
    a worker fails.
    """
    chain = chain_of(training.model)
    check_training(plan, training, testbed.settings, Execution.paper())
    members = sorted(plan.participants, key=lambda name: (plan.workers[name].depth, name == plan.root))
    _check_rival(testbed, plan, members, chain, rival)
    group = testbed.group(members, timeout_s=RIVAL_TIMEOUT_S)
    jobs = {
        name: RivalJob(
            group=group,
            rival=rival,
            threads=testbed.settings.workers[name].threads,
            training=training,
            plan=plan,
        )
        for name in members
    }
    return watch(testbed, jobs, Program(batch_size=plan.batch_size, data_holder=plan.data_holder, actions={}), training)


def _check_rival(testbed: Testbed, plan: Plan, members: Sequence[str], chain: Chain, rival: Rival) -> None:
    """Raise InputError unless ``rival`` can follow the plan at the machine's own speed. ``members``: by depth."""
    for name in members:
        worker = testbed.settings.workers[name]
        if worker.slowdown != 1 or worker.accelerator != "cpu" or testbed.links_from(name):
            raise InputError(f"{rival}: worker {name!r} is paced, accelerated or emulates links; a rival does neither")
    parts = [plan.workers[name] for name in members]
    if rival.way == "plain":
        fits, rule = len(members) == 1, "one worker, the data holder"
    elif rival.way in PIPELINES:
        depths = [part.depth for part in parts]
        fits = members[0] == plan.data_holder and parts[0].samples == plan.batch_size
        fits = fits and len(members) > 1 and sorted({0, *depths}) == [0, *depths] and depths[-2] < chain.depth - 1
        rule = "all samples on the data holder, and layers of its own for every worker"
    else:
        fits = all(part.depth == chain.depth and part.samples for part in parts)
        rule = "all layers and some samples on every worker"
    if not fits:
        raise InputError(f"{rival}: the plan must have {rule}")
    parts_of, stages = rival.micro_batches, len(members)
    if plan.batch_size % parts_of:  # the mean of their losses is then that of the mini-batch
        raise InputError(f"{rival}: the mini-batch has {plan.batch_size} samples; must be of equal parts")
    if rival.way in ("1f1b", "zero-bubble") and (parts_of < stages or parts_of % (parts_of // stages)):
        raise InputError(f"{rival}: must be at least one per stage, of which there are {stages}, and in equal rounds")
