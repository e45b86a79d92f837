import xml.etree.ElementTree as ET

import pytest

from expunge.core.finding import Finding
from expunge.report.comparison import comparisons
from expunge.report.radar import PROPERTIES, radar, spoke, spokes

# metric -> record set, unit, values before, after, of two references
MUSE = {
    "verbatim": ("forget", "%", (98.0, 34.0, 20.0, 24.0)),
    "knowledge": ("forget", "%", (80.0, 10.0, 30.0, 30.0)),
    "privleak": ("forget", "%", (-99.0, 25.0, 2.0, -2.0)),
    "utility": ("retain", "%", (70.0, 48.0, 60.0, 60.0)),
    "scalability": ("retain", "", (0.70, 0.30, 0.60, 0.60)),
    "sustainability": ("", "", (0.70, 0.15, 0.60, 0.60)),
}
SUBJECTS = ("before", "after", "reference", "reference")


def findings(metrics=MUSE, subjects=SUBJECTS, **changed):
    return [
        Finding(
            audit="muse",
            metric=metric,
            title=metric,
            subject=subject,
            value=changed.get(metric, value) if subject == "after" else value,
            n=9,
            direction="reference",
            unit=unit,
            record_set=record_set,
        )
        for metric in metrics
        for record_set, unit, values in [MUSE[metric]]
        for subject, value in zip(SUBJECTS, values, strict=True)
        if subject in subjects
    ]


def places(found):
    return {
        wanted.metric: axis.places
        for wanted, axis in zip(PROPERTIES, spokes(comparisons(found)), strict=True)
    }


def texts(svg):
    root = ET.fromstring(str(svg).replace("xlink:href", "href"))
    return ["".join(node.itertext()).strip() for node in root.iter("text")]


def test_outward_is_better_and_retraining_is_the_outermost_ring():
    found = places(findings())
    assert all(place["reference"] == 1 for place in found.values())
    assert found["verbatim"] == pytest.approx({"before": 0.24, "after": 0.88, "reference": 1})
    assert found["knowledge"] == pytest.approx({"before": 0.5, "after": 1.0, "reference": 1})
    assert found["privleak"] == pytest.approx({"before": 0.01, "after": 0.75, "reference": 1})
    assert found["utility"] == pytest.approx({"before": 1.0, "after": 0.8, "reference": 1})
    assert found["scalability"]["after"] == pytest.approx(0.5)
    assert found["sustainability"]["after"] == pytest.approx(0.25)


def test_without_retraining_the_yardsticks_are_nothing_and_the_original():
    found = places(findings(subjects=("before", "after")))
    assert found["verbatim"] == pytest.approx({"before": 0.02, "after": 0.66})
    assert found["utility"] == pytest.approx({"before": 1.0, "after": 0.48 / 0.7})


def test_leaking_in_either_direction_is_as_bad():
    up, down = (places(findings(privleak=value))["privleak"] for value in (60.0, -60.0))
    assert up == down
    assert places(findings(privleak=300.0))["privleak"]["after"] == 0


def test_shares_and_percent_lie_at_the_same_place():
    wanted = PROPERTIES[0]
    shares = {"before": 0.9, "after": 0.5, "reference": 0.25}
    percent = {role: 100 * value for role, value in shares.items()}
    assert spoke(wanted, shares, "").places == pytest.approx(spoke(wanted, percent, "%").places)


def test_the_leak_of_retraining_is_nothing_by_definition():
    found = findings()
    single = [o for o in found if not (o.metric == "privleak" and o.subject == "reference")]
    assert places(single)["privleak"]["reference"] == 1
    assert "reference" not in places(findings(subjects=("before", "after")))["utility"]


def test_another_audits_numbers_are_not_taken():
    theirs = [Finding(**{**vars(one), "audit": "memorization"}) for one in findings()]
    assert spokes(comparisons(theirs)) is None


def test_what_was_not_measured_is_said_and_has_no_corner():
    measured = ["verbatim", "knowledge", "privleak", "utility"]
    drawn = spokes(comparisons(findings(measured)))
    assert [axis.measured for axis in drawn] == [True] * 4 + [False] * 2
    svg = radar(drawn)
    assert texts(svg).count("(not measured)") == 2
    assert {"original", "after", "retrained"} <= set(texts(svg))
    assert "(not measured)" not in texts(radar(spokes(comparisons(findings()))))


def test_a_number_that_could_not_be_computed_is_not_measured():
    drawn = spokes(comparisons(findings(privleak=None)))
    assert [axis.name for axis in drawn if not axis.measured] == ["no privacy leakage"]


def test_edges_run_only_between_neighbours_that_were_measured():
    def edges(metrics):
        svg = str(radar(spokes(comparisons(findings(metrics)))))
        return svg.count("stroke: var(--after); stroke-width: 1.8; stroke-linecap: square")

    assert edges(list(MUSE)) == 6
    assert edges(["verbatim", "knowledge", "privleak", "utility"]) == 3
    assert edges(["verbatim", "privleak", "scalability"]) == 0


def test_two_properties_make_no_radar():
    assert spokes(comparisons(findings(["verbatim", "knowledge"]))) is None
    assert spokes([]) is None


def test_a_utility_of_nothing_is_no_division_by_zero():
    found = findings()
    nothing = [
        Finding(**{**vars(one), "value": 0.0}) if one.subject == "reference" else one
        for one in found
    ]
    assert places(nothing)["utility"] == pytest.approx(
        {"before": 0.7, "after": 0.48, "reference": 1}
    )
