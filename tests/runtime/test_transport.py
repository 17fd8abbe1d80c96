"""How the workers of a job meet; what they then exchange is the subject of ``test_training``."""

from datetime import timedelta

import pytest
import torch.distributed as dist

from hiertrain.control.jobs import Group
from hiertrain.runtime.transport import Transport
from hiertrain.testbeds.local import ADDRESS, LOOPBACK
from hiertrain.values import RunError


def test_a_store_that_somebody_else_wrote_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK)
    store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    group = Group(members=("a", "b"), tag="t", store_address=ADDRESS, store_port=store.port, timeout_s=60, silence_s=60)
    store.set("t/b", "here")
    for key in range(10):  # where PyTorch keeps the addresses of ranks
        store.set(f"t/{key}//cpu//0/1", "x" * 100)
    what = rf"^the workers cannot meet by the store at {ADDRESS}:{store.port}, which nothing else may write to: \w+: "
    with pytest.raises(RunError, match=what):
        Transport("a", group, {})
    assert not dist.is_initialized()
