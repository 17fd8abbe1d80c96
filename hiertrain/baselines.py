"""The plans that hybrid parallelism is compared with. Each is a plan like any other: same cost model, same runtime."""

from hiertrain.chain import Chain
from hiertrain.plan import Assignment, Plan


def single_worker_plan(chain: Chain, workers: tuple[str, ...], worker: str, batch_size: int, data_holder: str) -> Plan:
    """``all-device``, ``all-edge``, ``all-cloud``: one worker does everything; raw samples are sent to it."""
    idle = Assignment(parent=worker, depth=0, samples=0)
    everything = Assignment(parent=None, depth=chain.depth, samples=batch_size)
    parts = {name: everything if name == worker else idle for name in workers}
    return Plan(batch_size=batch_size, data_holder=data_holder, workers=parts)
