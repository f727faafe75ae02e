"""The Ray session of a run, which starts after all checks of the experiment.

An experiment that does not fit the cluster is refused before anything starts, because Ray itself would wait forever.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sepscene.augment.separation.channel_scores import ChannelScores
from sepscene.augment.separation.service import open_separator
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.node_wait import wait_for_nodes
from sepscene.orchestration.runtime.placement import check_placement, cluster_nodes, phases
from sepscene.orchestration.runtime.ray_compat import configure_data
from sepscene.orchestration.runtime.session import check_custom_code, connected
from sepscene.orchestration.runtime.signals import exit_on_signal
from sepscene.orchestration.training.builders import check_parts, check_start


@contextmanager
def prepared_session(
    experiment: Experiment,
    address: str | None = None,
    verbose: bool = False,
    dashboard: bool = False,
    further_experiments: Iterable[Experiment] = (),
) -> Iterator[None]:
    """Check the separators, start encoder and resources of an experiment, and connect to Ray for the block.

    Inside a job or a Tune trial, where Ray is already connected, only the checks are done.

    Args:
        address, verbose, dashboard: see `runtime.session.connect`.
        further_experiments: experiments that will run in the same session; their custom code is sent and imported, too.

    Raises:
        SepsceneError: when a separator or encoder cannot be used, or the experiment cannot be placed.
    """
    experiments = (experiment, *further_experiments)
    if any(each.views.background == "exchanged" for each in experiments):
        raise SepsceneError("views.background=exchanged works with `reproduce --scale mini` only: set it to kept")
    if experiment.data.is_generated:
        from sepscene.augment.synthetic.scenes import (
            profile_of_length,  # here, because importing scipy.signal takes a second
        )

        profile_of_length(experiment.audio.clip_seconds, experiment.data.scenes_profile)
    scores = ChannelScores.of(experiment.views)
    sources = {experiment.separator.network.sources}
    for name, place in experiment.separator.checkpoints.items():
        sources.add(int(open_separator(name, place, experiment.audio).sources))  # type: ignore[arg-type]
    if scores is not None:
        for channels in sorted(sources):
            scores.try_out(channels, experiment.audio.samples)
    check_parts(experiment)
    check_start(experiment)
    code = sorted({name for each in experiments for name in each.custom_code})
    with connected(address, verbose, dashboard, code):
        nodes = cluster_nodes()
        for demands in phases(experiment):
            check_placement(demands, nodes)
        wait_for_nodes(phases(experiment)[0])
        check_custom_code(code)
        configure_data(experiment.training.ordered)
        with exit_on_signal():
            yield
