"""Planning what goes wrong: pure, seeded, and with room between the faults."""

import pytest

from scanside.runtime.realtime.faults import FaultRequest, Mishap, Plan, plan_run


def plan(*faults: str, volumes: int = 40, seed: int = 0) -> Plan:
    return plan_run(volumes, [FaultRequest.parse(text) for text in faults], seed)


def order(plan: Plan) -> list[int]:
    return [delivery.number for delivery in plan.deliveries]


def test_without_faults_every_volume_comes_one_tr_after_it_began():
    deliveries = plan(volumes=5).deliveries
    assert [(d.number, d.due_trs) for d in deliveries] == [(n, n + 1.0) for n in range(5)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("drop@3", [0, 1, 2, 4, 5, 6, 7]),
        ("drop:2@3", [0, 1, 2, 5, 6, 7]),
        ("duplicate@3", [0, 1, 2, 3, 3, 4, 5, 6, 7]),
        ("duplicate:2@3", [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]),
        ("swap@3", [0, 1, 2, 4, 3, 5, 6, 7]),
        ("swap:2@3", [0, 1, 2, 5, 3, 4, 6, 7]),
        ("delay:2@3", [0, 1, 2, 4, 5, 3, 6, 7]),
        ("stall:3@3", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("second-series:2@3", [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]),
        ("restart@3", [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_each_fault_changes_the_order_as_it_says(fault: str, expected: list[int]):
    assert order(plan(fault, volumes=8)) == expected


def test_a_stall_holds_volumes_back_and_then_gives_them_all():
    due = {d.number: d.due_trs for d in plan("stall:3@3", volumes=10).deliveries}
    assert due[2] == 3.0
    assert 7.0 <= due[3] < due[4] < due[5] < 7.1
    assert due[6] >= 7.0


def test_a_skewed_clock_stays_skewed():
    skews = [d.skew_s for d in plan("clock-skew:5@6", volumes=8).deliveries]
    assert skews == [0.0] * 6 + [5.0] * 2


@pytest.mark.parametrize("seed", range(20))
def test_faults_never_touch_each_other(seed: int):
    made = plan("drop:2", "swap", "truncate", "short", "delay", "duplicate", seed=seed)
    concerned = [set(truth.numbers) for truth in made.truths]
    for index, one in enumerate(concerned):
        for other in concerned[index + 1 :]:
            assert min(abs(a - b) for a in one for b in other) >= 2
    assert min(min(one) for one in concerned) >= 1
    assert max(max(one) for one in concerned) <= 38


def test_the_same_seed_gives_the_same_plan():
    faults = ("drop", "swap", "stall", "restart")
    assert plan(*faults, seed=3) == plan(*faults, seed=3)
    assert plan(*faults, seed=3) != plan(*faults, seed=4)


def test_every_fault_can_be_asked_for_by_its_name():
    for kind in Mishap:
        request = FaultRequest.parse(kind)
        assert (request.kind, request.at) == (kind, None)
        assert len(plan(kind).truths) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("explode", "KIND one of drop, duplicate"),
        ("drop:x", "must be KIND"),
        ("drop:1.5", "volumes in a row that never come; got 1.5"),
        ("drop:0", "got 0"),
        ("truncate:1", "share of a file"),
        ("delay:-1", "TRs by which"),
        ("clock-skew:0", "seconds by which"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(text: str, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        FaultRequest.parse(text)


def test_faults_must_fit_into_the_run():
    with pytest.raises(ValueError, match="drop@8 lies outside a run of 8 volumes"):
        plan("drop@8", volumes=8)
    with pytest.raises(ValueError, match="restart@0 lies outside"):
        plan("restart@0", volumes=8)
    with pytest.raises(ValueError, match="no room left in 8 volumes"):
        plan(*["drop"] * 5, volumes=8)
