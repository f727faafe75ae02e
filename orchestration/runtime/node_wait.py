"""Waiting for nodes that have not joined the cluster yet, with a time limit and with messages.

Ray itself waits forever, without any message, for a node that the cloud cannot provide or that failed to start.
"""

import logging
import os
import time
from collections.abc import Sequence

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.placement import CLUSTER_VARIABLE, Demand, cluster_nodes, live_nodes, pack, unplaced

logger = logging.getLogger("sepscene")

WAIT_VARIABLE = "SEPSCENE_NODE_WAIT_SECONDS"
DEFAULT_WAIT_SECONDS = 1800.0  # clouds take minutes to start a GPU node and to install its image
POLL_SECONDS = 2.0  # interval at which the list of nodes is read
REPORT_SECONDS = 60.0  # interval of the messages that say which nodes are missing


def wait_for_nodes(requested: Sequence[Demand]) -> None:
    """If SEPSCENE_CLUSTER is set, request all that a run needs from the autoscaler in one call, and wait.

    Raises:
        SepsceneError: if nodes have not joined within SEPSCENE_NODE_WAIT_SECONDS; the message gives what is missing.
    """
    if not os.environ.get(CLUSTER_VARIABLE):
        return
    limit = _wait_limit()
    start = time.monotonic()
    reported = start
    _request_nodes(requested)
    try:
        while missing := pack(requested, live_nodes())[1]:
            now = time.monotonic()
            if now - start > limit:
                raise SepsceneError(_timeout_message(missing, limit))
            if now - reported > REPORT_SECONDS:
                logger.warning("waiting for nodes for %.0f s: %s", now - start, unplaced(missing))
                reported = now
            time.sleep(POLL_SECONDS)
    finally:
        _request_nodes(())  # from now on the run's actors keep its nodes


def _wait_limit() -> float:
    """The time limit in seconds, from the environment variable.

    Raises:
        SepsceneError: if the variable is not a number.
    """
    value = os.environ.get(WAIT_VARIABLE) or DEFAULT_WAIT_SECONDS
    try:
        return float(value)
    except ValueError:
        raise SepsceneError(f"{WAIT_VARIABLE}={value!r} is not a number: set it to seconds, e.g. 900") from None


def _request_nodes(requested: Sequence[Demand]) -> None:
    """Pass the bundles to the autoscaler; no effect if there is none (Slurm, SkyPilot)."""
    from ray.autoscaler.sdk import request_resources

    placed, _ = pack(requested, cluster_nodes())
    bundles = []
    for demand, node in placed:
        bundle = {"CPU": demand.cpus, "GPU": demand.gpus}
        if node.accelerator:  # the launcher's older autoscaler selects nodes by this, not by their labels
            bundle[f"accelerator_type:{node.accelerator}"] = 0.001
        bundles.append({name: amount for name, amount in bundle.items() if amount})
    request_resources(bundles=bundles, bundle_label_selectors=[dict(demand.labels) for demand, _ in placed])


def _timeout_message(missing: Sequence[Demand], limit: float) -> str:
    joined = ", ".join(sorted({node.name for node in live_nodes()}))
    return (
        f"nodes of {os.environ[CLUSTER_VARIABLE]} have not joined within {limit:.0f} s: no place for "
        f"{unplaced(missing)}. Nodes that have joined: {joined}. Check the logs of the nodes that did not start, the "
        f"quota and `ray status`; {WAIT_VARIABLE} sets the time limit"
    )
