"""The demands of one trial, and whether they fit a list of nodes; without Ray."""

import itertools
import re
from collections import Counter

import pytest

from sepscene.clusters.pools import Node, Pool
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Resources
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.runtime.placement import (
    Demand,
    check_placement,
    concurrent_trials,
    demands,
    matches,
    node_from_ray,
    pack,
    phases,
)

SEPARATORS = Node("s", cpus=8, gpus=1, labels={"pool": "separators"}, accelerator="L4")
TRAINERS = Node("t", cpus=16, gpus=8, labels={"pool": "trainers"}, accelerator="H100")
HEAD = Node("head", cpus=4)


def on_two_pools(**changes: object) -> Resources:
    return Resources.model_validate(
        {
            "trainers": 8,
            "trainer_cpus": 1,
            "trainer_gpus": 1,
            "separation_actors": 4,
            "separation_cpus": 1,
            "separation_gpus": 0.5,
            "readers": 4,
            "reader_cpus": 0.5,
            "trainer_labels": {"pool": "trainers"},
            "separation_labels": {"pool": "separators"},
            **changes,
        }
    )


def test_a_trial_requests_trainers_actors_and_readers() -> None:
    requested = demands(on_two_pools())
    assert [(d.role, d.cpus, d.gpus) for d, _ in itertools.groupby(requested)] == [
        ("trainer", 1, 1),
        ("separation actor", 1, 0.5),
        ("reader", 0.5, 0),
        ("data task", 1, 0),
    ]
    assert len(requested) == 8 + 4 + 4 + 1
    assert sum(d.cpus for d in requested) == 8 + 4 + 2 + 1


def test_half_a_cpu_is_not_enough_for_ray_data() -> None:
    resources = Resources(trainers=1, trainer_cpus=1, separation_cpus=0.5, readers=1, reader_cpus=0.5)
    with pytest.raises(SepsceneError, match="would wait forever"):
        check_placement(demands(resources), [Node("laptop", 2.5)])
    check_placement(demands(resources), [Node("laptop", 3)])


def test_mix_mix_requests_no_separation_actors() -> None:
    assert {demand.role for demand in demands(on_two_pools(), separates=False)} == {"trainer", "reader", "data task"}


def test_a_filled_store_needs_separation_actors_before_the_trainers_not_at_the_same_time() -> None:
    tiny = named_experiment("demo", "tiny")
    live = tiny.changed({"resources.separation_actors": 4, "resources.separation_cpus": 0.2})
    before = live.changed({"store.mode": "prefill"})
    laptop = [Node("laptop", 2)]
    with pytest.raises(SepsceneError, match="separation actors"):
        check_placement(*phases(live), laptop)
    prefill, training = phases(before)
    for requested in (prefill, training):
        check_placement(requested, laptop)
    assert "trainer" not in {demand.role for demand in prefill}
    assert "separation actor" not in {demand.role for demand in training}
    only_mixtures = before.changed({"views.pair": "mix-mix", "resources.separation_labels": {"pool": "separators"}})
    assert phases(only_mixtures)[0] == training
    with pytest.raises(SepsceneError, match="separation_labels"):  # evaluation needs one actor
        check_placement(phases(only_mixtures)[1], laptop)


def test_only_the_minimum_of_an_elastic_actor_pool_must_fit() -> None:
    elastic = named_experiment("demo", "tiny").changed(
        {
            "resources.separation_actors": 16,
            "resources.separation_actors_min": 2,
            "resources.separation_cpus": 1,
        }
    )
    (requested,) = phases(elastic)
    assert Counter(demand.role for demand in requested)["separation actor"] == 2
    fixed = elastic.changed({"resources.separation_actors_min": None})
    check_placement(requested, [Node("laptop", 8)])
    with pytest.raises(SepsceneError, match=r"of 16 separation actors .*\.separation_actors_min"):
        check_placement(*phases(fixed), [Node("laptop", 8)])


def test_a_tune_trial_also_requests_its_driver() -> None:
    plain = demands(Resources())
    tuned = demands(Resources(), driver_cpus=1)
    assert len(tuned) == len(plain) + 1
    assert (tuned[-1].role, tuned[-1].cpus) == ("trial driver", 1)


def test_a_number_of_gpus_above_one_must_be_whole() -> None:
    with pytest.raises(SepsceneError, match=r"1\.5 GPUs.*whole GPUs"):
        demands(Resources(trainer_gpus=1.5))


def test_rays_options_equal_the_demand() -> None:
    demand = Demand("separation actor", 1, 0.5, {"pool": "separators"}, "L4")
    assert demand.ray_options() == {
        "num_cpus": 1,
        "num_gpus": 0.5,
        "label_selector": {"pool": "separators"},
        "accelerator_type": "L4",
    }
    assert Demand("reader", 0.5).ray_options() == {"num_cpus": 0.5}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, "head spot trainers"),
        ({"pool": "trainers"}, "trainers"),
        ({"pool": "!trainers"}, "head spot"),  # verified on Ray 2.60: `!` also matches nodes without the label
        ({"pool": "in(trainers,separators)"}, "spot trainers"),
        ({"pool": "in(trainers, separators)"}, "spot trainers"),
        ({"pool": "!in(trainers,separators)"}, "head"),
        ({"pool": "!nothing"}, "head spot trainers"),
        ({"pool": ""}, ""),
        ({"pool": "separators", "market": "spot"}, "spot"),
        ({"pool": "separators", "market": "!spot"}, ""),
        ({"absent": "x"}, ""),
    ],
)
def test_label_selectors_follow_rays_rules(selector: dict[str, str], expected: str) -> None:
    nodes = {"head": {}, "spot": {"pool": "separators", "market": "spot"}, "trainers": {"pool": "trainers"}}
    assert " ".join(name for name, labels in nodes.items() if matches(labels, selector)) == expected


def test_demands_that_fit_exactly_are_placed_on_the_right_nodes() -> None:
    placed, waiting = pack(demands(on_two_pools()), [SEPARATORS, SEPARATORS, TRAINERS, HEAD])
    assert waiting == []
    where = {
        role: {node.name for d, node in placed if d.role == role} for role in ("trainer", "separation actor", "reader")
    }
    assert where == {"trainer": {"t"}, "separation actor": {"s"}, "reader": {"head"}}


def test_readers_do_not_occupy_nodes_with_gpus_that_others_need() -> None:
    nodes = [Node("gpu", cpus=2, gpus=1), Node("cpu", cpus=3)]
    check_placement(
        demands(Resources(trainers=1, trainer_cpus=2, trainer_gpus=1, separation_cpus=1, readers=2)),
        nodes,
    )


def test_a_share_of_a_gpu_cannot_span_two_gpus() -> None:
    node = Node("n", cpus=8, gpus=2)
    assert pack([Demand("a", 1, 0.6)] * 2, [node])[1] == []
    assert len(pack([Demand("a", 1, 0.6)] * 3, [node])[1]) == 1
    assert len(pack([Demand("a", 1, 0.6), Demand("b", 1, 2)], [node])[1]) == 1
    assert pack([Demand("a", 1, 0.25)] * 8, [node])[1] == []


def test_one_bundle_never_spans_two_nodes() -> None:
    with pytest.raises(SepsceneError, match="largest node for it has 4 CPU and 1 GPU"):
        check_placement([Demand("trainer", 6, 1, fields="k")], [Node("a", 4, 1), Node("b", 4, 1)])


@pytest.mark.parametrize(
    ("changes", "nodes", "reason"),
    [
        (
            {"separation_labels": {"pool": "seperators"}},
            [SEPARATORS, TRAINERS, HEAD],
            "no node has these labels; .*trainers",
        ),
        ({"separation_labels": {"pool": "!separators"}}, [SEPARATORS], "no node has these labels"),
        (
            {"separation_accelerator": "T4"},
            [SEPARATORS, TRAINERS],
            "no such node has accelerator T4; they have L4",
        ),
        (
            {"separation_actors": 5},
            [SEPARATORS, SEPARATORS, TRAINERS],
            "1 of 5 separation actors .*node.s. are occupied",
        ),
        ({"trainers": 9}, [SEPARATORS, SEPARATORS, TRAINERS], "1 of 9 trainers .*resources.trainers"),
        ({"separation_gpus": 2}, [SEPARATORS, TRAINERS], "largest node for it has 8 CPU and 1 GPU"),
        ({}, [], "the cluster has no node"),
    ],
)
def test_the_error_gives_the_bundle_the_reason_and_what_to_change(
    changes: dict, nodes: list[Node], reason: str
) -> None:
    with pytest.raises(SepsceneError) as refusal:
        check_placement(demands(on_two_pools(**changes)), nodes)
    assert re.search(reason, str(refusal.value)), str(refusal.value)
    assert "change resources." in str(refusal.value)


def test_without_gpus_the_error_explains_how_to_run_on_cpus() -> None:
    small = named_experiment("demo", "small")
    lower = r", and lower resources.readers, .* request 8 CPU, and 2 are available\n"
    for cpus, more in ((16, r"\n  nodes"), (2, lower)):
        with pytest.raises(SepsceneError) as refusal:
            check_placement(*phases(small), [Node("laptop", cpus)])
        advice = "to run on CPUs, slowly: --set resources.trainer_gpus=0 --set resources.separation_gpus=0"
        assert re.search(re.escape(advice) + more, str(refusal.value)), str(refusal.value)
    fixed = small.changed({"resources.trainer_gpus": 0, "resources.separation_gpus": 0})
    check_placement(*phases(fixed), [Node("laptop", 16)])
    with pytest.raises(SepsceneError) as refusal:
        check_placement(*phases(small), [Node("one GPU", 2, gpus=1)])
    assert "to run on CPUs" not in str(refusal.value)


def test_equal_nodes_are_grouped_in_the_error() -> None:
    with pytest.raises(
        SepsceneError, match=re.escape("2 x (8 CPU, 1 GPU, accelerator L4, pool=separators); 1 x (4 CPU)")
    ):
        check_placement([Demand("trainer", 99)], [SEPARATORS, SEPARATORS, HEAD])


def test_how_many_trials_fit_at_the_same_time() -> None:
    nodes = [SEPARATORS] * 8 + [TRAINERS] * 3 + [HEAD]
    requested = demands(on_two_pools())
    assert concurrent_trials(requested, nodes) == 3  # 3 x 8 trainers; the separators would suffice for 4
    assert concurrent_trials(requested, [SEPARATORS, TRAINERS]) == 0
    assert concurrent_trials([Demand("reader", 0.5)], [HEAD]) == 8
    assert concurrent_trials([Demand("reader", 0.5)], [Node("big", 1000)], limit=10) == 10


def test_packing_agrees_with_exhaustive_search() -> None:
    """All lists of up to four bundles on two nodes: none is wrongly accepted, at most 3 % are wrongly rejected."""
    nodes = [Node("a", 2, 1, {"pool": "x"}), Node("b", 3, 1)]
    kinds = [
        Demand("r", 0.5),
        Demand("c", 1),
        Demand("C", 2),
        Demand("g", 1, 0.5),
        Demand("G", 1, 1, {"pool": "x"}),
    ]

    def fits(chosen: tuple[Demand, ...]) -> bool:
        """Try every assignment; each node has one GPU, so fractions can be summed."""
        for hosts in itertools.product(nodes, repeat=len(chosen)):
            load = {node.name: [d for d, host in zip(chosen, hosts, strict=True) if host is node] for node in nodes}
            if all(
                sum(d.cpus for d in load[n.name]) <= n.cpus
                and sum(d.gpus for d in load[n.name]) <= n.gpus
                and all(matches(n.labels, d.labels) for d in load[n.name])
                for n in nodes
            ):
                return True
        return False

    missed = total = 0
    for size in range(1, 5):
        for chosen in itertools.combinations_with_replacement(kinds, size):
            greedy = not pack(chosen, nodes)[1]
            truth = fits(chosen)
            assert truth or not greedy, chosen
            missed += truth and not greedy
            total += truth
    assert missed <= 0.03 * total, (missed, total)


def test_a_node_of_ray_nodes() -> None:
    entry = {
        "NodeManagerAddress": "10.0.0.7",
        "Resources": {
            "CPU": 8.0,
            "GPU": 1.0,
            "accelerator_type:L4": 1.0,
            "memory": 1e9,
            "node:10.0.0.7": 1.0,
        },
        "Labels": {"ray.io/node-id": "45ef", "pool": "separators", "ray.io/accelerator-type": "L4"},
    }
    labels = {"pool": "separators", "ray.io/accelerator-type": "L4"}
    assert node_from_ray(entry) == Node("10.0.0.7", 8, 1, labels, "L4")
    assert node_from_ray({"NodeManagerAddress": "h", "Resources": {}, "Labels": {}}) == Node("h", 0)


def test_pools_number_their_nodes() -> None:
    assert [node.name for node in Pool("workers", HEAD, 0, 4).nodes(2)] == ["workers-0", "workers-1"]
