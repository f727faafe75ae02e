"""The Ray that a command starts for itself does without what nobody reads or needs there."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_of_our_own")]


def test_a_local_stage_has_no_process_that_tidies_up_after_it() -> None:
    import ray
    from ray.train.torch import TorchTrainer

    from orchestration.placement import is_local
    from orchestration.trainer import LocalTrainer

    @ray.remote(num_cpus=0)
    def in_a_process_of_ray() -> bool:
        return is_local()

    assert is_local() and ray.get(in_a_process_of_ray.remote(), timeout=60)  # where trials of a sweep ask

    def callbacks(kind: type[TorchTrainer]) -> set[str]:
        return {type(each).__name__ for each in kind(lambda: None)._create_default_callbacks()}

    assert callbacks(TorchTrainer) - callbacks(LocalTrainer) == {"PlacementGroupCleanerCallback"}
