"""Training with half precision on the wire: what is rounded where, written out for two workers."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.program.compiler import compile_plan
from hiertrain.workload.chain_model import ChainModel, chain_from_module, summed_loss
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.spec import OptimizerSettings
from tests.in_threads import Batches, run
from tests.runtime.test_runner import CLASSES, DEPTH, SHAPE, build_net

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CUT, OWN, BATCH = 2, 4, 12  # the device computes layers 1..2 of 4 samples, the edge all layers of 8, and updates


def plan_of(device: int) -> Plan:
    """That many samples begin on the device."""
    parts = {
        "device": Assignment(parent="edge", depth=CUT, samples=device),
        "edge": Assignment(parent=None, depth=DEPTH, samples=BATCH - device),
    }
    return Plan(batch_size=BATCH, data_holder="device", workers=parts)


PLAN = plan_of(OWN)
SGD = OptimizerSettings(learning_rate=0.05, momentum=0.9)


def batches() -> Batches:
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8, generator=random), torch.arange(BATCH) % CLASSES)
        for _ in range(5)
    ]


def trained(model: ChainModel, activations: str, parameters: str) -> Tensor:
    """The edge's weights after training on threads."""
    encodings = {"activation_encoding": activations, "parameter_encoding": parameters}
    program = compile_plan(PLAN, model.chain, Execution.model_validate(encodings))
    return nn.utils.parameters_to_vector(run(program, model, SGD, batches())[0].parameters())


def by_hand(model: ChainModel, activations: torch.dtype, parameters: torch.dtype) -> Tensor:
    """The same weights: the device's copy and all that is sent are rounded, the edge's weights and momentum are not."""
    device, edge = copy.deepcopy(model), copy.deepcopy(model)
    theirs, ours = ([p for p in own.layers[:CUT].parameters() if p.requires_grad] for own in (device, edge))
    optimizer = build_optimizer(SGD, list(edge.parameters()))
    mine, rest = PLAN.own_rows("device"), PLAN.own_rows("edge")
    for samples, labels in batches():
        optimizer.zero_grad()
        output = device.run(samples[mine.start : mine.stop], 1, CUT)
        sent = output.detach().to(activations).float().requires_grad_()
        joined = torch.cat([edge.run(samples[rest.start : rest.stop], 1, CUT), sent])
        rows = [*rest, *mine]
        (summed_loss(edge.run(joined, CUT + 1, DEPTH - 1), labels[rows]) / BATCH).backward()
        assert sent.grad is not None
        gradients = torch.autograd.grad(output, theirs, sent.grad.to(activations).float())
        for weight, gradient in zip(ours, gradients, strict=True):
            assert weight.grad is not None
            weight.grad += gradient.to(parameters).float()
        optimizer.step()
        for copied, weight in zip(theirs, ours, strict=True):
            copied.data = weight.detach().to(parameters).float()
    return nn.utils.parameters_to_vector(edge.parameters())


@pytest.fixture
def model() -> ChainModel:
    return chain_from_module(build_net(), "given", SHAPE, CLASSES)


@pytest.mark.parametrize(("activations", "parameters"), [*product(DTYPES, DTYPES)])
def test_only_messages_are_rounded(model: ChainModel, activations: str, parameters: str) -> None:
    found = trained(model, activations, parameters)
    torch.testing.assert_close(found, by_hand(model, DTYPES[activations], DTYPES[parameters]), rtol=0, atol=1e-7)
    exact = torch.equal(found, trained(model, "float32", "float32"))
    assert exact == ((activations, parameters) == ("float32", "float32"))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_small_gradients_vanish_in_float16_and_not_in_bfloat16(half: str) -> None:
    """All samples begin on the device; weights behind the cut are so small that gradients there are below 2^-25."""
    net = build_net()
    net[-1].weight.data *= 1e-7  # type: ignore[index]
    model = chain_from_module(net, "given", SHAPE, CLASSES)
    program = compile_plan(plan_of(BATCH), model.chain, Execution.model_validate({"activation_encoding": half}))
    owner, _ = run(program, model, SGD.model_copy(update={"learning_rate": 1e6}), batches()[:1])
    before, after = (nn.utils.parameters_to_vector(own.layers[:CUT].parameters()) for own in (model, owner))
    assert torch.equal(before, after) == (half == "float16")
