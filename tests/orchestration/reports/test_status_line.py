"""The words beside a progress bar."""

from sepscene.orchestration.reports.status_line import Terms

STEP = {"stage": "pretrain", "step": 5, "loss": 5.851, "similarity": 4.5, "coincidence": 1.35, "waiting_share": 0.031}


def test_what_is_not_measured_at_each_step_stays() -> None:
    terms = Terms(100)
    terms.update({**STEP, "effective_rank": 23.4, "examples_per_second": 41.2})
    terms.update({"stage": "pretrain", "step": 5, "validation_knn_map": 0.3126})
    said = terms.update({**STEP, "loss": 5.0})
    assert said == "loss 5.00  41/s  waiting 3%  sim 4.50  coin 1.35  val mAP 0.313  rank 23"


def test_a_narrow_terminal_gets_the_most_telling_ones() -> None:
    assert Terms(22).update(STEP) == "loss 5.85  waiting 3%"
    assert Terms(0).update(STEP) == "loss 5.85"
    assert Terms(80).update({"stage": "separator", "mixit_loss": -4.0}) == "loss -4.00"
    assert Terms(80).update({"stage": "evaluate"}) == ""
