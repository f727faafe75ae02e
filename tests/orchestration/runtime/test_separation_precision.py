"""Every stage gets the separators' precision, and a prefill is valid for one precision only."""

from collections.abc import Mapping
from typing import Any

from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.training.prefill import prefill_key
from sepscene.orchestration.training.stream import _served
from sepscene.tasks.datasets.manifest import Clip, make_manifest

FLOAT32 = named_experiment("demo", "tiny")
BFLOAT16 = FLOAT32.changed({"resources.separation_precision": "bfloat16"})


class Rows:
    """Replaces a Ray data set and records the settings of its stages."""

    def __init__(self) -> None:
        self.settings: list[ServiceSettings] = []

    def map_batches(self, stage: type, fn_constructor_kwargs: Mapping[str, Any], **options: Any) -> "Rows":
        self.settings.append(fn_constructor_kwargs["settings"])
        return self


def test_readers_and_separators_get_the_precision() -> None:
    for experiment in (FLOAT32, BFLOAT16):
        rows = Rows()
        _served(rows, experiment, {}, store=None, crash_counts=None, live=True)  # type: ignore[arg-type]
        assert [s.precision for s in rows.settings] == [experiment.resources.separation_precision] * 2


def test_a_prefill_is_of_one_precision(tmp_path) -> None:  # type: ignore[no-untyped-def]
    names = FLOAT32.views.combination
    save_separator(TDCNpp(TDCNppConfig.tiny()), tmp_path, {})
    ladder, train = dict.fromkeys(names, str(tmp_path)), make_manifest([Clip("a", "a", (), "train")], "here")
    keys = {prefill_key(experiment, train, ladder) for experiment in (FLOAT32, FLOAT32, BFLOAT16)}
    assert len(keys) == 2
