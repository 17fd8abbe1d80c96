"""A training whose workers are started by hand, each by torchrun on its own machine."""

from pydantic import Field, model_validator

from hiertrain.control.jobs import Group, TrainJob
from hiertrain.problem.profile import Accelerator
from hiertrain.program.actions import Program
from hiertrain.values import MOST_WORKERS, Name, PositiveSeconds, Threads, Value
from hiertrain.workload.spec import Training


class Machine(Value):
    """What a worker that is started by hand computes with."""

    threads: Threads
    accelerator: Accelerator = "cpu"


class Jobs(Value):
    """A training whose workers are started by hand, nothing emulated: the content of ``jobs.json``, one for all."""

    training: Training
    program: Program
    workers: dict[Name, Machine] = Field(max_length=MOST_WORKERS)  # the program's; a worker's rank is its place here
    tag: Name  # see Group; random, so that nobody else on the network has set its keys in the store beforehand
    predicted_s: PositiveSeconds  # per iteration, to be shown beside what is measured
    timeout_s: PositiveSeconds  # see Group
    silence_s: PositiveSeconds

    @model_validator(mode="after")
    def _workers_are_the_participants(self) -> "Jobs":
        if set(self.workers) != set(self.program.actions):
            raise ValueError(
                f"workers {', '.join(self.workers)}: must be {', '.join(self.program.actions)}, as in the program"
            )
        if self.program.batch_size != self.training.batch_size:
            raise ValueError(
                f"the program's batch_size {self.program.batch_size}: must be the training's, "
                f"{self.training.batch_size}"
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
            program=self.program.part(name),
            owners={owner: (layers.start, layers.stop - 1) for owner, layers in self.program.owners.items()},
        )
