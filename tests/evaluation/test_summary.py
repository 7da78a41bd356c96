"""The figures of a run: keys, derived values, and what is not there when a part is missing."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from relay_lightning.evaluation.baseline import dump_results, load_results
from relay_lightning.evaluation.evaluate import EvalResult, Judged
from relay_lightning.evaluation.routers import RouterResult
from relay_lightning.evaluation.summary import relay_fields, summary_lines, summary_table


def result(num_correct: int, num_teacher_tokens: int, num_problems: int = 100) -> EvalResult:
    """Ten tokens a completion."""
    return EvalResult(
        tuple(
            Judged(index, index < num_correct, 10, num_teacher_tokens, int(num_teacher_tokens > 0), 1)
            for index in range(num_problems)
        )
    )


RESULTS = {
    "student_alone": result(40, 0),
    "teacher_alone": result(90, 10),
    "relay_before": result(60, 5),
    "relay_after": result(85, 1),
    "teacher_free_after": result(45, 0),
}
ROUTERS = {
    "random_query_router_matched": RouterResult(0.9, 0.85, 0.88, 3, True),
    "random_query_router_matched_untrained": RouterResult(0.8, 0.85, 0.8, 3, True),
    "random_token_router_same_budget": RouterResult(0.1, 0.5, 0.1, 3, True),
}


def test_summary_has_the_documented_keys_and_derived_figures():
    fields = json.loads(json.dumps(relay_fields(RESULTS, ROUTERS)))
    assert fields["student_alone"]["accuracy"] == 0.4
    assert fields["teacher_alone"]["call_ratio"] == 1.0
    for name in ("relay_before", "relay_after", "teacher_free_after"):
        assert {"accuracy", "call_ratio", "num_problems"} <= fields[name].keys()
    assert fields["gap_recovered"] == pytest.approx((0.85 - 0.4) / (0.9 - 0.4))
    assert fields["random_query_router_matched"]["teacher_token_share"] == 0.88
    assert fields["random_token_router_same_budget"]["accuracy"] == 0.5
    # the cheaper of the two matched routers is the one to beat
    assert fields["teacher_token_reduction"] == pytest.approx(1 - 0.1 / 0.8)


def test_derived_figures_are_missing_when_their_parts_are():
    after_only = {"relay_after": RESULTS["relay_after"]}
    assert relay_fields(after_only, {})["gap_recovered"] is None
    assert relay_fields(RESULTS, {})["teacher_token_reduction"] is None
    assert relay_fields(RESULTS | {"teacher_alone": RESULTS["student_alone"]}, {})["gap_recovered"] is None


def test_malformed_share_counts_opened_tags():
    assert result(1, 1).malformed_call_frac == 0.5
    assert EvalResult((Judged(0, True, 5, 0, 0, 0),)).malformed_call_frac == 0.0


def test_answers_that_were_not_understood_are_counted_apart():
    judged = (Judged(0, False, 5, 0, 0, 0, is_unparsable=True), Judged(1, False, 5, 0, 0, 0))
    assert EvalResult(judged).unparsable_frac == 0.5
    assert relay_fields({"relay_after": EvalResult(judged)}, {})["relay_after"]["unparsable_frac"] == 0.5


def test_a_limit_that_cuts_calls_is_seen_in_the_lines():
    judged = Judged(0, True, 100, 3, 1, 0, num_requested_tokens=9)
    lines = summary_lines(relay_fields({"relay_after": EvalResult((judged, replace(judged, prompt_id=1)))}, {}))
    assert lines == ["tokens of a call: 9.0 requested, 3.0 delivered"]


def test_table_shows_every_row_once():
    fields = relay_fields(RESULTS, ROUTERS)
    output = io.StringIO()
    Console(file=output, width=120).print(summary_table(fields))
    rows = output.getvalue()
    for title in (
        "student alone",
        "teacher alone",
        "relay before",
        "relay after",
        "teacher-free after",
        "query router",
    ):
        assert rows.count(title) == 1
    assert "85.0%" in rows
    assert summary_lines(fields) == [
        "gap to the teacher recovered: 90.0%",
        "teacher tokens saved against a random query router of the same accuracy: 87.5%",
    ]


def test_warm_up_tells_the_share_of_well_formed_commands():
    fields = relay_fields({"relay_after_sampled": result(50, 1)}, {})
    assert summary_lines(fields) == ["commands that are well-formed when sampled: 50.0%"]


def test_stored_results_are_used_only_for_what_they_were_measured_on():
    identity = {"student": "tiny:student", "max_calls": None}
    text = dump_results(RESULTS, identity)
    assert load_results(text, identity) == RESULTS
    assert load_results(text, identity | {"student": "other"}) == {}
