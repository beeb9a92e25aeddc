"""Which scheduler settings hold for a job: the cluster's, with its node pool's on top."""

from __future__ import annotations

import msgspec

from nomadpy.models.job import Job
from nomadpy.models.operator import SchedulerConfiguration
from nomadpy.scheduler.snapshot import Snapshot


def effective_config(snapshot: Snapshot, job: Job) -> SchedulerConfiguration:
    """Return the cluster's settings with those that the job's node pool sets itself."""
    config = snapshot.scheduler_config()
    pool = snapshot.node_pool(job.node_pool)
    own = pool.scheduler_configuration if pool is not None else None
    if own is None:
        return config
    oversubscribe = own.memory_oversubscription_enabled
    return msgspec.structs.replace(
        config,
        scheduler_algorithm=own.scheduler_algorithm or config.scheduler_algorithm,
        memory_oversubscription_enabled=config.memory_oversubscription_enabled
        if oversubscribe is None
        else oversubscribe,
    )


def may_preempt(config: SchedulerConfiguration, job_type: str) -> bool:
    """Whether jobs of this type may evict less important ones."""
    allowed = config.preemption_config
    return {
        "service": allowed.service_scheduler_enabled,
        "batch": allowed.batch_scheduler_enabled,
        "system": allowed.system_scheduler_enabled,
        "sysbatch": allowed.sys_batch_scheduler_enabled,
    }.get(job_type, False)
