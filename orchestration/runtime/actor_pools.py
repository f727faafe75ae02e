"""How Ray Data runs actors that compute on clips: how many there are, and how often a dead one is replaced.

Training and evaluation use the same pool: clips are separated during the one, and embedded during the other.
"""

from ray.data import ActorPoolStrategy

from sepscene.orchestration.config import Resources


def finite_retries() -> dict[str, int]:
    """How often Ray restarts an actor and repeats one of its calls; without limits it does so forever.

    The crash quarantine needs three repeats to find a clip that crashes its actor (see `augment.crash_counts`).
    """
    return {"max_restarts": 1000, "max_task_retries": 4}


def separation_pool(resources: Resources) -> ActorPoolStrategy:
    """The pool of separation actors: a fixed number, or from `separation_actors_min` to `separation_actors`.

    Ray 2.60 scales an elastic pool in each iteration of the stream's loop. It adds a seventh of the present actors, at
    least one, while they process 1.75 blocks or more on average (2 is the most) and Ray Data's budget permits. Below
    0.5 blocks it removes one. An actor that the cluster cannot place yet waits.
    """
    counts = resources.separation_counts
    return ActorPoolStrategy(min_size=counts[0], max_size=counts[-1])
