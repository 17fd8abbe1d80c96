"""What is trained, in values: model, data, optimizer, and for how long; the same whoever computes it."""

from typing import Literal

from pydantic import Field

from hiertrain.values import (
    BatchSize,
    Classes,
    LearningRate,
    Momentum,
    Name,
    Option,
    Pixels,
    PositiveCount,
    Seed,
    Value,
    WeightDecay,
)


class ModelSettings(Value):
    """Which model; every worker builds it for itself."""

    name: Name
    sample_shape: tuple[Pixels, Pixels, Pixels] | None = None  # None: the model's default
    classes: Classes = 10
    seed: Seed = 0
    options: dict[Name, Option] = Field(
        default_factory=dict
    )  # further arguments of a torchvision model, such as dropout


class OptimizerSettings(Value):
    """An element-wise optimizer. Adam takes no notice of ``momentum`` and keeps PyTorch's default betas."""

    name: Literal["sgd", "adam"] = "sgd"
    learning_rate: LearningRate = 0.02
    momentum: Momentum = 0.9
    weight_decay: WeightDecay = 0.0

    @property
    def copies(self) -> int:
        """How often it keeps something of the size of the weights."""
        return 2 if self.name == "adam" else int(self.momentum > 0)


class Training(Value):
    """What is trained, whoever computes it: the same for every plan and for a single process."""

    model: ModelSettings
    dataset: Name
    data_folder: str | None = None  # on the data holder's machine; None: the data folder of the checkout there
    batch_size: BatchSize
    optimizer: OptimizerSettings = OptimizerSettings()
    seed: Seed = 0  # of the sample order
    iterations: PositiveCount
    snapshot_every: PositiveCount  # iterations; there is always one after the last

    def snapshot_due(self, done: int) -> bool:
        """Whether the weights are kept after ``done`` iterations."""
        return done == self.iterations or done % self.snapshot_every == 0
