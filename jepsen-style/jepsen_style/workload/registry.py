"""All workloads by name."""

from __future__ import annotations

from jepsen_style.workload.append import Append
from jepsen_style.workload.base import Workload
from jepsen_style.workload.blocking import Blocking
from jepsen_style.workload.capacity import Capacity
from jepsen_style.workload.counter import Counter
from jepsen_style.workload.deployments import Deploy
from jepsen_style.workload.jobs_set import JobsSet
from jepsen_style.workload.leaks import Leaks
from jepsen_style.workload.lock import Lock
from jepsen_style.workload.placement import Placement
from jepsen_style.workload.register import Register
from jepsen_style.workload.survive import Survive

WORKLOADS: dict[str, type[Workload]] = {
    w.name: w
    for w in (
        Register,
        Counter,
        Append,
        JobsSet,
        Lock,
        Blocking,
        Placement,
        Capacity,
        Survive,
        Deploy,
        Leaks,
    )
}
