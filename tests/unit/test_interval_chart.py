"""The picture of the verdicts on claims."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tricklab.analysis.claims import Judged
from tricklab.analysis.interval_chart import AXIS_LEFT, AXIS_RIGHT, draw_claims, position, scale
from tricklab.analysis.statistics import summarise
from tricklab.analysis.verdicts import Expectation, judge


def make_judged(values, matters=0.01, **bounds):
    expectation = Expectation("a", "test/acc", "b", **bounds)
    measured = summarise(values)
    return Judged(expectation, matters, measured, judge(expectation, measured))


@pytest.mark.parametrize(
    ("bounds", "mean"),
    [
        ({"above": 0}, 2.0),  # 0.02 in units of 0.01
        ({"below": 0}, -2.0),  # against what is expected
        ({"above": 0.05}, -3.0),
        ({"below": 0.05}, 3.0),
        ({"within": 0.01}, 2.0),  # as it is
    ],
)
def test_scale_is_the_distance_from_the_bound_as_expected_to_the_right(bounds, mean):
    low, middle, high = scale(make_judged([0.015, 0.02, 0.025], **bounds))
    assert middle == pytest.approx(mean)
    assert low < middle < high
    assert high - middle == pytest.approx(middle - low)


def test_equivalence_shows_the_interval_of_90_percent():
    values = [0.015, 0.02, 0.025]
    wide = scale(make_judged(values, above=0))
    narrow = scale(make_judged(values, within=0.01))
    assert (narrow[2] - narrow[0]) / (wide[2] - wide[0]) == pytest.approx(2.920 / 4.303, abs=1e-3)


def test_positions_end_with_the_axis():
    assert [position(value) for value in (-9, -4, 0, 4, 9)] == [
        *(AXIS_LEFT, AXIS_LEFT),
        (AXIS_LEFT + AXIS_RIGHT) / 2,
        *(AXIS_RIGHT, AXIS_RIGHT),
    ]


def test_picture_has_a_line_for_each_expectation_in_the_color_of_its_verdict():
    claims = {
        "A <claim> & more": [
            make_judged([0.015, 0.02, 0.025], above=0),
            make_judged([-0.015, -0.02, -0.025], above=0),
        ],
        "Another": [make_judged([-0.1, 0.0, 0.1], above=0), make_judged([9.0, 9.1], above=0)],
    }
    svg = draw_claims(claims)
    ElementTree.fromstring(svg)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert "A &lt;claim&gt; &amp; more" in texts
    verdicts = ["PASS +0.0200", "FAIL -0.0200", "no difference &gt; 0.25", "PASS +9.0500"]
    assert [text for text in texts if text in verdicts] == verdicts
    lines = re.findall(r'<line class="(\w+)"', svg)
    assert lines == ["axis", "good", "bad", "open", "good"]
    assert svg.count("<circle") == 3  # the last is beyond the axis
    assert texts.count("▸") == 2
    assert texts.count("◂") == 1
