"""A training whose workers are started by hand, each by torchrun on its own machine."""

from pydantic import Field, model_validator

from hiertrain.control.jobs import Group, TrainJob
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Accelerator
from hiertrain.values import MOST_WORKERS, Name, PositiveSeconds, Threads, Value
from hiertrain.workload.spec import Training


class Machine(Value):
    """What a worker that is started by hand computes with."""

    threads: Threads
    accelerator: Accelerator = "cpu"


class Jobs(Value):
    """A training whose workers are started by hand, nothing emulated: the content of ``jobs.json``, one for all."""

    training: Training
    plan: Plan
    execution: Execution
    workers: dict[Name, Machine] = Field(
        max_length=MOST_WORKERS
    )  # the plan's participants; a worker's rank is its place here
    tag: Name  # see Group; random, so that nobody else on the network has set its keys in the store beforehand
    predicted_s: PositiveSeconds  # per iteration, to be shown beside what is measured
    timeout_s: PositiveSeconds  # see Group
    silence_s: PositiveSeconds

    @model_validator(mode="after")
    def _workers_are_the_participants(self) -> "Jobs":
        if tuple(self.workers) != self.plan.participants:
            raise ValueError(
                f"workers {', '.join(self.workers)}: must be {', '.join(self.plan.participants)}, as in the plan"
            )
        return self

    def job(self, name: str, store_address: str, store_port: int) -> TrainJob:
        """The part of worker ``name``, in the group that meets at this store."""
        group = Group(
            members=tuple(self.workers),
            tag=self.tag,
            store_address=store_address,
            store_port=store_port,
            timeout_s=self.timeout_s,
            silence_s=self.silence_s,
        )
        return TrainJob(
            group=group,
            threads=self.workers[name].threads,
            accelerator=self.workers[name].accelerator,
            training=self.training,
            plan=self.plan,
            execution=self.execution,
        )
