"""The answer of an experiment: counts by hand, paired intervals, sentences, what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_transfer.predictions import Predictions
from sparse_transfer.report import write
from sparse_transfer.statistics.paired_shares import paired_difference

N = 40
ROWS = [
    {"title": "before", "arm": "a", "method": "dense", "mode": "upstream"},
    {"title": "control", "arm": "b", "method": "dense", "mode": "upstream"},
    {"title": "gmp", "arm": "b", "method": "gmp", "mode": "upstream"},
    {"title": "fggp", "arm": "b", "method": "fggp", "mode": "upstream"},
]
ANSWER = {
    "headline": "Made up",
    "text": "",
    "reference": "control",
    "candidates": ["gmp", "fggp"],
    "rows": ROWS,
    "left_out": ["a smaller model: no weights"],
}
# images that each model gets wrong, and its errors on validation
WRONG = {
    ("a", "dense"): (range(0, 8), 0.2),
    ("b", "dense"): (range(0, 4), 0.1),
    ("b", "gmp"): (range(2, 14), 0.3),
    ("b", "fggp"): (range(0, 5), 0.15),
}


def predictions(wrong: Any) -> Predictions:
    labels = np.arange(N) % 2
    guess = np.where(np.isin(np.arange(N), list(wrong)), 1 - labels, labels)
    return Predictions.from_logits(
        np.array([f"{i:03d}" for i in range(N)]), labels, 4.0 * np.eye(2)[guess]
    )


def report(
    *,
    without: str = "",
    stored: bool = True,
    zeros: str = "does not use zeros",
    before: float = 0.0,
    p90: float = 1.0,
    over: str = "slow",
    first: str = "dense",
    **changes: Any,
) -> write.Report:
    frame = []
    for (arm, method), (wrong, validation) in WRONG.items():
        if f"{arm}/{method}" == without:
            continue
        sparsity = 0.0 if method == "dense" else 0.9
        value = 1 - len(wrong) / N
        frame.append(
            {
                "arm": arm, "model": "net", "sparsity": sparsity,
                "method": first if arm == "a" else method, "upstream_seed": 0,
                "transfer_seed": None, "task": "t", "split_hash": "h",
                "mode": "upstream", "metric": "top1", "value": value, "top1": value, "n_test": N,
                "image_size": 32, "profile": "", "recipe": "r", "stage": "prune", "run": "x",
                "measured_sparsity": sparsity, "mac_ratio": 1 - sparsity, "bytes": 4e6,
                "packed": 4e6 * (1 - sparsity) or 4e6, "validation_top1": 1 - validation,
                "predictions": f"{arm}/{method}",
            }
        )  # fmt: skip
    bench = pd.DataFrame(
        {
            "arm": arm, "model": "net", "method": method, "sparsity": sparsity, "upstream_seed": 0,
            "backend": backend, "uses_zeros": zeros, "over": over, "device": "cpu", "threads": 1,
            "batch_size": 2, "image_size": 32, "median_s": seconds, "p10_s": seconds,
            "p90_s": seconds * p90, "speedup": 1.25, "speedup_low": 1.2, "speedup_high": 1.3,
            "mac_ratio": 1.0,
        }
        for arm, method, sparsity, factor in (
            ("a", first, 0.0, before), ("b", "dense", 0.0, 1.0), ("b", "gmp", 0.9, 1.0),
        )
        if factor
        for backend, seconds in (("slow", 0.1 * factor), ("fast", 0.02 * factor))
    )  # fmt: skip
    rows = [ROWS[0] | {"method": first}, *ROWS[1:]]
    facts = {"experiment": "e", "title": "T", "answer": ANSWER | {"rows": rows} | changes}

    def load(row: Any) -> Predictions:
        return predictions(WRONG[tuple(row["predictions"].split("/"))][0])  # type: ignore[index]

    return write.build(pd.DataFrame(frame), bench, facts, load if stored else None)


def by_title(made: write.Report) -> pd.DataFrame:
    return next(t for t in made.tables if t.name == "answer").frame.set_index("title")


def test_errors_are_counted_and_paired_by_image():
    rows = by_title(report())
    assert rows["errors"].round(9).to_dict() == {"before": 8, "control": 4, "gmp": 12, "fggp": 5}
    # control errs on 0-3, gmp on 2-13: both on two, control alone on two, gmp alone on ten
    limits = paired_difference(2, 2, 10, 26)
    found = rows.loc["gmp"]
    assert (found["points"], found["points_low"], found["points_high"]) == pytest.approx(limits)
    assert rows["verdict"].to_dict() == {
        "before": "undecided", "control": "", "gmp": "worse", "fggp": "undecided",
    }  # fmt: skip


def test_the_sentences_say_all_of_it():
    said = report().closing
    gmp = next(text for text in said if text.startswith("gmp"))
    assert "error 10.0 % → 30.0 % (4 → 12 of 40 images; +20.0 points" in gmp
    assert "paired, worse" in gmp
    # two images in 20 ms on the faster backend
    assert "10 ms per image; 4 MB, 0.4 MB with the zeros compressed" in gmp
    assert said[-1] == "Left out: a smaller model: no weights."


def test_the_regime_is_said_once():
    said = report(before=1.0).closing
    assert [text for text in said if "1 thread" in text] == [
        "Times: fast backend, cpu, 1 thread, batch 2, which does not use zeros."
    ]


def test_the_dense_time_stands_only_beside_one_that_uses_zeros():
    made = report()
    assert "beside it" not in " ".join(made.closing)
    assert by_title(made)["dense_per_image"].isna().all()
    # the dense model took 1.25 times as long as the pruned one, on the backend named
    made = report(zeros="uses zeros")
    said = " ".join(made.closing)
    assert (
        "gmp" in said and "10 ms per image, the dense model beside it 12.5 (slow backend)" in said
    )
    assert "does not use zeros" not in said
    assert "beside it 12.5;" in " ".join(report(zeros="uses zeros", over="fast").closing)


@pytest.mark.parametrize(("before", "factor"), [(1.15, ""), (0.5, "2"), (3.0, "3")])
def test_dense_rows_of_different_times_are_not_to_be_compared(before: float, factor: str):
    said = [text for text in report(before=before).closing if "busy machine" in text]
    if not factor:
        assert not said
        return
    assert len(said) == 1
    assert f"by a factor of {factor} between dense rows" in said[0]
    assert "do not compare them" in said[0]


def test_a_smaller_dense_model_may_be_faster():
    """Its method has another label than the reference's: it is another network."""
    made = report(before=3.0, first="small")
    assert by_title(made).loc["before", "per_image"] == pytest.approx(0.03)
    assert not any("busy machine" in text for text in made.closing)


def test_an_uneven_time_has_a_mark():
    assert "uneven" not in " ".join(report(p90=2.0).closing)
    made = report(p90=2.5)
    assert "10 ms per image, uneven (p10 10, p90 25); 4 MB" in " ".join(made.closing)
    assert by_title(made).loc["gmp", "uneven"] == "uneven (p10 10, p90 25)"


def test_the_recommendation_follows_the_validation_images():
    verdict = report().verdict
    assert verdict[2].startswith("Made up: 40 test images.")
    assert "fggp is the best of the 2 pruned models (15.0 % wrong there)" in verdict[2]


def test_the_first_sentence_is_the_answer():
    first, second, _ = report().verdict
    assert first.startswith(
        "Recommended: fggp, error 10.0 % → 12.5 % (4 → 5 of 40 images; +2.5 points, 95 % interval"
    )
    assert first.endswith(
        "paired, undecided) against control, 4 MB, 0.4 MB with the zeros compressed."
    )
    assert (
        second == "control (4 wrong, 4 MB) makes fewer errors than every other row, pruned or not."
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (range(0, 1), "Every dense row makes more errors on the test images than fggp."),
        (range(0, 4), "Dense, and no more errors than fggp: control (4 wrong, 4 MB)."),
        (
            range(0, 9),
            "control (4 wrong, 4 MB) makes fewer errors than every other row, pruned or not; "
            "no more than fggp also: before (8 wrong, 4 MB).",
        ),
    ],
)
def test_dense_rows_that_do_as_well_are_said(wrong, said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(WRONG, ("b", "fggp"), (wrong, 0.15))
    assert report().verdict[1] == said


def test_another_dense_row_is_no_change_of_the_reference():
    before = next(text for text in report().closing if text.startswith("before"))
    assert before.startswith("before: error 20.0 % (8 of 40 images; control: 4; +10.0 points, 95 %")
    assert "→" not in before


def test_numbers_in_the_file_are_those_of_whole_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(WRONG, ("b", "fggp"), (range(0, 7), 0.15))  # (1 - 33 / 40) * 40 > 7
    rows = by_title(report())
    assert rows["errors"].tolist() == [8, 4, 12, 7]
    assert rows["error"].tolist() == [0.2, 0.1, 0.3, 0.175]
    assert rows["validation_error"].tolist() == [0.2, 0.1, 0.3, 0.15]


def test_the_test_images_do_not_order_the_candidates(monkeypatch: pytest.MonkeyPatch):
    # gmp is wrong on 12 test images and fggp on 5; on the validation images it is the other way
    monkeypatch.setitem(WRONG, ("b", "gmp"), (WRONG["b", "gmp"][0], 0.05))
    verdict = report().verdict
    assert verdict[0].startswith("Recommended: gmp, ")
    assert "gmp is the best of the 2 pruned models (5.0 % wrong there)" in verdict[2]


def test_a_row_without_result_is_said():
    assert "fggp: no result." in report(without="b/fggp").closing


def test_without_the_reference_nothing_is_compared():
    made = report(without="b/dense")
    assert "points" not in by_title(made)
    assert "gmp: error 30.0 % (12 of 40 images" in " ".join(made.closing)
    assert "control: no result." in made.closing


def test_without_predictions_there_is_no_pairing():
    made = report(stored=False)
    assert "points" not in by_title(made)
    assert "error 10.0 % → 30.0 % (4 → 12 of 40 images)" in " ".join(made.closing)


def test_reports_without_an_answer_have_none():
    made = report()
    assert [section.name for section in made.sections][0] == "answer"
    plain = write.build(pd.DataFrame(), pd.DataFrame(), {"experiment": "e"}, None)
    assert plain.closing == () and not plain.tables
