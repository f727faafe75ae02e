"""Waiting for nodes that are promised and not there yet: with a limit, and with words.

Ray itself waits forever, and without a word, for a node that the cloud cannot give or that failed to start.
"""

import logging
import os
import time
from collections.abc import Sequence

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.placement import CLUSTER_VARIABLE, Demand, cluster_nodes, live_nodes, pack, unplaced

logger = logging.getLogger("sepscene")

WAIT_VARIABLE = "SEPSCENE_NODE_WAIT_SECONDS"
DEFAULT_WAIT_SECONDS = 1800.0
POLL_SECONDS = 2.0
SAY_EVERY_SECONDS = 60.0


def wait_for_nodes(asked: Sequence[Demand]) -> None:
    """Where SEPSCENE_CLUSTER promises nodes, ask the autoscaler for what a run needs at once, and wait for it.

    Raises:
        SepsceneError: when nodes have not joined within SEPSCENE_NODE_WAIT_SECONDS; it says what is missing.
    """
    if not os.environ.get(CLUSTER_VARIABLE):
        return
    limit = float(os.environ.get(WAIT_VARIABLE, DEFAULT_WAIT_SECONDS))
    began = said = time.monotonic()
    _ask_autoscaler(asked)
    try:
        while missing := pack(asked, live_nodes())[1]:
            now = time.monotonic()
            if now - began > limit:
                raise SepsceneError(_gave_up(missing, limit))
            if now - said > SAY_EVERY_SECONDS:
                logger.warning("waiting for nodes since %.0f s: %s", now - began, unplaced(missing))
                said = now
            time.sleep(POLL_SECONDS)
    finally:
        _ask_autoscaler(())  # from here on the run's own actors keep its nodes


def _ask_autoscaler(asked: Sequence[Demand]) -> None:
    """Name the bundles to the autoscaler; where there is none (Slurm, SkyPilot) nobody reads it."""
    from ray.autoscaler.sdk import request_resources

    placed, _ = pack(asked, cluster_nodes())
    bundles = []
    for demand, node in placed:
        bundle = {"CPU": demand.cpus, "GPU": demand.gpus}
        if node.accelerator:  # the launcher's older autoscaler knows nodes by this, not by their labels
            bundle[f"accelerator_type:{node.accelerator}"] = 0.001
        bundles.append({name: amount for name, amount in bundle.items() if amount})
    request_resources(bundles=bundles, bundle_label_selectors=[dict(demand.labels) for demand, _ in placed])


def _gave_up(missing: Sequence[Demand], limit: float) -> str:
    there = ", ".join(sorted({node.name for node in live_nodes()}))
    return (
        f"nodes that {os.environ[CLUSTER_VARIABLE]} promises have not joined within {limit:.0f} s: no place for "
        f"{unplaced(missing)}. There are: {there}. Look at the logs of the nodes that did not start, at the quota and "
        f"at `ray status`; {WAIT_VARIABLE} sets how long to wait"
    )
