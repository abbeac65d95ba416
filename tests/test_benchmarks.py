"""What the benchmarks make of their figures: medians, ratios, reasons; tables, plots and the page they end up in."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict

import pytest
from benchmarks import pages, plot, scaling
from benchmarks.peers import __main__ as peers_command, report
from benchmarks.peers.results import Results, Row


def results(*rows: Row) -> Results:
    return Results("a machine", "2026-01-31", threads=2, rounds=3, rows=list(rows))


def row_of(engine: str, kind: str = "4-bit", **figures: list[float]) -> Row:
    return Row(engine, "Q4_1", kind, "1.0", figures)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_figure_is_the_median_of_its_rounds():
    [_, _, line] = cells(report.figures([row_of("SageLLM", a=[1.0, 250.0, 2000.0])], []))
    assert line[:4] == ["Q4_1", "SageLLM", "1.0", "250"]


def test_ours_is_held_against_each_peer_with_weights_of_the_same_class_only():
    rows = [row_of("SageLLM", a=[150.0]), row_of("other", a=[100.0]), row_of("third", kind="bf16", a=[1.0])]
    [_, _, *lines] = cells(report.ratios(rows))
    assert [line[1] for line in lines] == ["other, Q4_1"]
    assert lines[0][2] == "1.50x"


def test_a_run_keeps_what_an_earlier_one_found_of_work_it_did_not_measure():
    earlier = results(row_of("SageLLM", a=[1.0], b=[10.0]), row_of("other", a=[2.0], b=[20.0]), row_of("gone", a=[3.0]))
    now = results(row_of("SageLLM", a=[5.0]), row_of("other", a=[6.0]), row_of("third", kind="bf16", a=[7.0]))
    now.take_in(earlier)
    # One run's figure is never held against another's of the same work: who was not there now has none.
    assert [(row.engine, row.figures) for row in now.rows] == [
        ("SageLLM", {"a": [5.0], "b": [10.0]}),
        ("other", {"a": [6.0], "b": [20.0]}),
        ("gone", {}),
        ("third", {"a": [7.0]}),
    ]


def test_nothing_is_compared_when_ours_took_no_part():
    assert report.ratios([row_of("other", a=[1.0])]) == ""


def test_a_peer_that_failed_is_in_the_table_with_its_reason_once():
    failed = Row("other", "Q8_0", "8-bit", failures={"a": "no compiler", "b": "no compiler", "c": "out of memory"})
    told = report.tables(results(failed))
    [_, _, line] = cells(next(part for part in told.split("\n\n") if part.startswith("|")))
    assert line[3:6] == ["failed [1]", "failed [1]", "failed [2]"]
    assert told.endswith("[1] other, Q8_0: no compiler\n\n[2] other, Q8_0: out of memory")


def test_a_figure_of_which_a_round_failed_is_compared_with_nothing():
    theirs = Row("other", "Q4_1", "4-bit", "1.0", {"a": [1.0]}, {"a": "it ended"})
    [_, _, line] = cells(report.ratios([row_of("SageLLM", a=[1.0]), theirs]))
    assert line[2] == report.NOTHING


def test_results_survive_being_written_as_json():
    given = results(row_of("SageLLM", a=[1.0, 2.0]), Row("other", "Q4_0", "4-bit", failures={"a": "why"}))
    assert Results.from_json(json.loads(json.dumps(given.to_json()))) == given


@pytest.mark.parametrize("option", ["--only", "--weights", "--work"])
def test_a_name_that_an_option_does_not_know_is_refused_with_those_it_knows(option, capsys):
    with pytest.raises(SystemExit):
        peers_command.main([option, "nonsense"])
    assert "'nonsense' is none of" in capsys.readouterr().err


def test_the_axis_of_a_plot_reaches_its_highest_value_in_a_few_round_steps():
    for highest in (0.3, 1.0, 5.0, 7.1, 42.0, 99.9, 1234.0):
        found = plot.ticks(highest)
        assert found[0] == 0
        assert found[-1] >= highest > found[-2]
        assert 3 <= len(found) <= 6


def test_a_plot_is_svg_with_a_dot_for_each_point():
    drawn = plot.draw([plot.Panel("up & <more>", "across", [(1, 2.0), (128, 900.0)]), plot.Panel("b", "c", [(4, 1.0)])])
    assert len(ET.fromstring(drawn).findall(".//{http://www.w3.org/2000/svg}circle")) == 3


def test_a_page_keeps_what_is_outside_its_markers():
    page = "before\n<!-- x -->\nold\n<!-- /x -->\nafter\n"
    new = pages.filled(page, {"x": r"new \1"})
    assert new == "before\n<!-- x -->\nnew \\1\n<!-- /x -->\nafter\n"
    assert pages.filled(new, {"x": r"new \1"}) == new
    with pytest.raises(ValueError, match="<!-- y -->"):
        pages.filled(page, {"y": ""})


def test_the_page_on_performance_shows_what_was_measured():
    grown = scaling.Scaling.from_json(json.loads((pages.RESULTS / "scaling.json").read_text()))
    beside = Results.from_json(json.loads((pages.RESULTS / "peers.json").read_text()))
    page = pages.PAGE.read_text()
    assert scaling.tables(grown) in page
    assert report.tables(beside) in page
    assert pages.PLOT.read_text() == scaling.plot(grown)


def test_scaling_survives_being_written_as_json():
    point = scaling.Point(1, 2.0, 3.0, 4.0, 5.0)
    given = scaling.Scaling("a machine", "2026-01-31", "model", "bfloat16", 2, 3, [point], [point])
    assert scaling.Scaling.from_json(json.loads(json.dumps(asdict(given)))) == given
