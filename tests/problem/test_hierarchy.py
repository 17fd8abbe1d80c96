"""Tiers are a worker's property, and its name says them where it has none."""

import pytest

from hiertrain.problem.hierarchy import TIERS, of_tier, tier_of
from hiertrain.problem.profile import LayerCost, LayerTimes, WorkerProfile
from hiertrain.testbeds.settings import SshWorker, WorkerSettings
from hiertrain.values import InputError

COST = LayerCost(fixed_s=0.0, per_sample_s=1e-3)
PROFILE = WorkerProfile(layers=(LayerTimes(forward=COST, backward=COST, update_s=0.0),))
MACHINE = SshWorker(host="pi", address="192.168.1.20", interface="eth0")


@pytest.mark.parametrize("worker", [PROFILE, WorkerSettings(), MACHINE])
def test_a_name_says_the_tier_where_the_worker_does_not(worker: WorkerProfile | WorkerSettings) -> None:
    for tier in TIERS:
        assert tier_of(tier, worker) == tier_of(f"{tier}-3", worker) == tier
        assert tier_of("device", worker.model_copy(update={"tier": tier})) == tier
    for name in ("phone", "devices", "my-device", "Edge"):
        with pytest.raises(InputError, match=f"worker '{name}' has no tier, .* one of device, edge, cloud"):
            tier_of(name, worker)


def test_workers_of_a_tier_keep_their_order() -> None:
    phone = PROFILE.model_copy(update={"tier": "device"})
    workers = {"edge": PROFILE, "phone": phone, "device-2": PROFILE, "device": PROFILE}
    assert of_tier(workers, "device") == ("phone", "device-2", "device")
    with pytest.raises(InputError, match=r"no worker of the tier cloud; there are edge \(edge\), phone \(device\)"):
        of_tier(workers, "cloud")


@pytest.mark.parametrize("worker", [PROFILE, WorkerSettings(), MACHINE])
def test_a_tier_is_written_only_where_it_is_said(worker: WorkerProfile | WorkerSettings) -> None:
    assert "tier" not in worker.model_dump(mode="json")
    said = worker.model_copy(update={"tier": "edge"})
    assert type(worker).model_validate(said.model_dump(mode="json")) == said


def test_a_slower_worker_is_of_the_same_tier() -> None:
    edge = PROFILE.model_copy(update={"tier": "edge"})
    assert edge.scaled(2.0).tier == edge.linear_at(3).tier == "edge"
