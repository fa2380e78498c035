"""What the benchmarks calculate, choose and write, without measuring anything."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_the_path():
    """Their modules import each other by their plain names."""
    path = str(ROOT / "benchmarks")
    sys.path.insert(0, path)
    yield
    sys.path.remove(path)


@pytest.mark.parametrize("power", [-1, 0, 0.5, 1, 2])
def test_the_exponent_of_a_power_law_is_its_power(power):
    from growth_plot import Series

    points = [(size, 3 * size**power) for size in (1, 10, 100, 5000)]

    assert Series("a", "a", "ms", points).exponent() == pytest.approx(power)


def test_the_last_step_of_a_growth_has_an_exponent_of_its_own():
    from growth_plot import Series

    flat_then_steep = Series("a", "a", "ms", [(1, 1), (10, 1), (100, 10)])

    assert flat_then_steep.last_exponent() == pytest.approx(1)
    assert flat_then_steep.exponent() == pytest.approx(0.5)


def test_a_cost_of_nothing_has_no_exponent():
    from growth_plot import Series

    with pytest.raises(ValueError, match="no logarithm"):
        Series("a", "a", "ms", [(1, 0), (10, 1)]).exponent()


def test_one_size_has_no_exponent():
    from growth_plot import Series

    with pytest.raises(ValueError, match="measure two"):
        Series("a", "a", "ms", [(10, 1), (10, 2)]).exponent()


def test_a_plot_is_well_formed_and_has_a_point_for_each_size():
    from growth_plot import Series, svg

    series = [
        Series("a", "CPU <per> run", "ms", [(10, 0.02), (1000, 5), (9999, 70)]),
        Series("b", "flat", "ms", [(10, 1), (100, 1)]),
    ]
    root = ElementTree.fromstring(svg("Title & more", "size", series))
    circles = [each for each in root.iter() if each.tag.endswith("circle")]
    texts = [each.text for each in root.iter() if each.tag.endswith("text")]

    assert len(circles) == 5
    assert {"Title & more", "CPU <per> run, ms", "exponent 0.00"} <= set(texts)
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < float(root.attrib["width"])
        assert 0 < float(circle.attrib["cy"]) < float(root.attrib["height"])


def test_a_plot_draws_what_costs_more_further_up():
    from growth_plot import Series, svg

    rising = Series("a", "a", "ms", [(1, 1), (10, 10), (100, 1000)])
    root = ElementTree.fromstring(svg("t", "size", [rising]))
    places = [
        (float(each.attrib["cx"]), float(each.attrib["cy"]))
        for each in root.iter()
        if each.tag.endswith("circle")
    ]

    assert all(left[0] < right[0] for left, right in pairwise(places))
    assert all(left[1] > right[1] for left, right in pairwise(places))


def test_every_contestant_has_its_turn_in_every_round_and_not_always_the_same():
    from contestant_kinds import KINDS
    from peers import in_turn

    rounds = [list(in_turn(KINDS, number)) for number in range(5)]

    assert all(sorted(map(id, each)) == sorted(map(id, KINDS)) for each in rounds)
    assert len({each[0].key for each in rounds}) > 2


def test_what_scripts_take_is_known_from_bare_spawning():
    from peers_table import less_the_scripts

    found = less_the_scripts(
        {
            "bare": {"tree_cpu_ms": [3.0, 3.0], "lasting_cpu_ms": [1.0, 1.0]},
            "huey": {"tree_cpu_ms": [5.0, 1.5]},
            "shim": {"order_p50_ms": [1.0]},
        }
    )

    assert found["bare"]["worker_cpu_ms"] == [1.0, 1.0]
    assert found["huey"]["worker_cpu_ms"] == [3.0, 0.0]
    assert "worker_cpu_ms" not in found["shim"]


@pytest.mark.parametrize(
    ("times", "state", "says"),
    [
        (1, "success", "kept"),
        (1, "finished", "kept"),
        (2, "success", "run 2 times"),
        (1, "started", 'still "started"'),
        (1, "no result", "no result"),
    ],
)
def test_the_fate_of_a_run_is_said_in_words(times, state, says):
    from peer_measures import verdict

    assert verdict(times, state).startswith(says)


@pytest.mark.parametrize(
    ("measures", "says"),
    [
        ({}, "-"),
        ({"survivors": [0, 0, 0], "kill_ms": [5.0, 7.0, 9.0]}, "7"),
        ({"survivors": [0, 10, 10], "kill_ms": [5.0]}, "10 of 20 live on"),
    ],
)
def test_a_kill_that_leaves_somebody_alive_has_no_time(measures, says):
    from contestant_kinds import Kind
    from peers_table import kill_words

    assert kill_words(Kind("a", "a", can_kill=True), measures) == says


def test_who_has_no_order_to_kill_says_why():
    from contestant_kinds import Kind
    from peers_table import kill_words

    kind = Kind("a", "a", why_no_kill="has no hands")

    assert kill_words(kind, {}) == "cannot: has no hands"


def test_the_tables_name_everybody_who_was_measured():
    from contestant_kinds import KINDS
    from peers_table import tables

    results = {kind.key: {"order_p50_ms": [1.5]} for kind in KINDS}
    text = tables(results, {"huey": {"verdict": "kept"}})

    for kind in KINDS:
        assert kind.name in text
    assert "kept" in text


@pytest.mark.parametrize(
    ("log", "is_complete"),
    [
        ("line 1\nline 2\nthe end of 2\n", True),
        ("the end of 0\n", True),
        ("line 1\nline 3\nthe end of 2\n", False),
        ("line 1\nline 2\nthe end of 3\n", False),
        ("line 1\nline 2\n", False),
        ("", False),
    ],
)
def test_a_log_is_complete_if_all_lines_are_there_that_its_last_one_counts(
    log, is_complete
):
    import many

    assert many.is_complete(log) is is_complete


@pytest.mark.parametrize(
    ("size", "descriptors", "fits_in"),
    [(10, 1024, True), (1000, 1024, False), (10_000, 12_000, True)],
)
def test_a_crowd_that_needs_too_many_descriptors_is_left_out(
    size, descriptors, fits_in
):
    from growth_workers import fits

    assert fits(size, descriptors) is fits_in
