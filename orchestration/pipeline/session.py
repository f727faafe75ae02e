"""The Ray session of a run, begun once what the experiment names can be used."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sepscene.augment.separation.channel_scores import ChannelScores
from sepscene.augment.separation.service import open_separator
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.runtime.session import ray_session
from sepscene.orchestration.training.builders import check_parts, check_start


@contextmanager
def prepared_session(
    experiment: Experiment,
    address: str | None = None,
    verbose: bool = False,
    dashboard: bool = False,
    others: Iterable[Experiment] = (),
) -> Iterator[None]:
    """A Ray session (`runtime.session.ray_session`) for an experiment whose separators and start encoder can be used.

    Own code of `others`, which will run in the same session, is sent and imported, too.

    Raises:
        SepsceneError: when one of them can't be used, or the experiment can't be placed; it says what to change.
    """
    if experiment.views.background == "exchanged":
        raise SepsceneError("views.background exchanged works with `reproduce --scale mini` only: set it to kept")
    if experiment.data.is_generated:
        from sepscene.augment.synthetic.scenes import as_long_as  # scipy.signal takes a second

        as_long_as(experiment.audio.clip_seconds, experiment.data.scenes_profile)
    scores = ChannelScores.of(experiment.views)
    sources = {experiment.separator.network.sources}
    for name, place in experiment.separator.checkpoints.items():
        sources.add(int(open_separator(name, place, experiment.audio).sources))  # type: ignore[arg-type]
    if scores is not None:
        for channels in sorted(sources):
            scores.try_out(channels, experiment.audio.samples)
    check_parts(experiment)
    check_start(experiment)
    code = sorted({name for other in others for name in other.own_code})
    with ray_session(experiment, address, verbose, dashboard, code):
        yield
