"""Newly failing examples: which are chosen, what is shown, and that nothing of it is ever fatal."""

from __future__ import annotations

import base64
import dataclasses
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sparse_transfer.errors import UserError
from sparse_transfer.originals import Found
from sparse_transfer.report import tables
from sparse_transfer.report.material import Material
from sparse_transfer.report.pictures import SIDE, thumbnail
from sparse_transfer.report.sections.examples import MOST, MOST_BYTES, _of_task, section
from sparse_transfer.report.write import build, save
from sparse_transfer.statistics import compare

CLASSES = tuple(f"kind {letter}" for letter in "abcdef")


def images(task: str, ids) -> Found:
    """A noisy image for every id: JPEG can hardly compress it."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (len(ids), 160, 200, 3), dtype=np.uint8)
    return Found(CLASSES, {name: Image.fromarray(noise[i]) for i, name in enumerate(ids)})


@pytest.fixture(scope="module")
def small(make_study):
    return make_study(seeds=(0, 1), tasks=("birds", "signs"), modes=("linear-sgd", "full"))


@pytest.fixture(scope="module")
def material(small) -> Material:
    comparison = compare(small.frame)
    groups = tables.groups(comparison.methods, small.frame)
    facts = {"held_fixed": {}}
    nothing = pd.DataFrame()
    return Material(
        small.frame,
        nothing,
        facts,
        groups,
        comparison,
        nothing,
        predictions=small.predictions,
        images=images,
    )


@pytest.fixture(scope="module")
def part(material):
    (only,) = section(material).parts
    return only


def test_only_what_dense_knows_and_the_pruned_model_does_not(part, small):
    (table,) = part.tables
    assert part.title == "acdc 95 % sparse, full fine-tuning"
    assert len(table.frame) == MOST and table.frame["task"].value_counts().to_dict() == {
        "birds": 6, "signs": 6,
    }  # fmt: skip
    frame = small.frame[(small.frame["mode"] == "full")]
    for row in table.frame.to_dict("records"):
        found = 0
        for seed in (0, 1):
            own = frame[(frame["task"] == row["task"]) & (frame["upstream_seed"] == seed)]
            dense, sparse = (
                small.predictions(own[own["method"].eq(m) & own["sparsity"].eq(s)].iloc[0])
                for m, s in (("dense", 0.0), ("acdc", 0.95))
            )
            at = list(dense.example).index(row["example"])
            if dense.prediction[at] == dense.label[at] and sparse.prediction[at] != dense.label[at]:
                if not found:
                    assert row["label"] == CLASSES[dense.label[at]]
                    assert row["sparse"] == CLASSES[sparse.prediction[at]]
                    expected = np.exp([dense.top_log_prob[at, 0], sparse.top_log_prob[at, 0]])
                    shown = row["dense_confidence"], row["sparse_confidence"]
                    assert shown == pytest.approx(tuple(expected))
                found += 1
        assert row["share"] == f"{found} of 2" and found


def test_the_pictures_are_small_jpegs_with_words(part):
    assert 0 < len(part.pictures) <= MOST
    assert sum(len(picture.address) for picture in part.pictures) <= MOST_BYTES
    assert re.fullmatch(r"birds: kind \w, taken for kind \w", part.pictures[0].title)
    kind, _, text = part.pictures[0].address.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(text))) as shown:
        assert max(shown.size) == SIDE and shown.format == "JPEG"


def test_the_page_shows_them(small, tmp_path):
    report = build(small.frame, pd.DataFrame(), small.facts, small.predictions, images)
    page = save(report, tmp_path).read_text()
    assert page.count("<img ") == MOST
    assert re.search(r'<img [^>]*alt="birds: kind \w, taken for kind \w"', page)
    assert (tmp_path / "examples-main.csv").is_file()


def test_tiny_images_are_enlarged_by_whole_pixels():
    text = thumbnail(Image.new("RGB", (8, 6), "teal")).partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(text))) as shown:
        assert shown.size == (112, 84)


def test_without_data_the_ids_stand_in_a_table_that_says_why(material):
    def nowhere(task, ids):
        raise UserError("The data of task `x` is not here.", "it was moved")

    for find, why in ((nowhere, "it was moved"), (None, "no place of the data is known")):
        (part,) = section(dataclasses.replace(material, images=find)).parts
        assert not part.pictures and len(part.tables[0].frame) == MOST
        assert [why in note for note in part.tables[0].notes] == [True, True]
        assert part.tables[0].frame["label"].str.fullmatch(r"class \d").all()


def test_images_that_are_gone_are_left_out(material):
    def half(task, ids):
        found = images(task, ids)
        return Found(found.classes, dict(list(found.images.items())[::2]))

    (part,) = section(dataclasses.replace(material, images=half)).parts
    assert len(part.pictures) == MOST / 2


def test_predictions_that_vanished_cost_this_section_alone(material):
    def gone(row):
        raise UserError("The predictions file cannot be read.")

    assert not section(dataclasses.replace(material, predictions=gone))
    assert section(dataclasses.replace(material, predictions=None)) is None


def test_models_that_saw_other_examples_are_passed_over(small):
    one = next(iter(small.stored.values()))
    wrong = dataclasses.replace(one, prediction=(one.label + 1) % 6)
    assert _of_task("birds", [(one, wrong)])
    wrong = dataclasses.replace(wrong, example=one.example[::-1])
    assert _of_task("birds", [(one, wrong)]) == []


def test_imported_rows_have_no_predictions_and_are_passed_over(material, part):
    theirs = material.frame["method"] == "acdc"
    frame = material.frame.assign(predictions=material.frame["predictions"].mask(theirs))
    (other,) = section(dataclasses.replace(material, frame=frame)).parts
    rows = material.comparison.methods
    rows = rows[(rows["mode"] == "full") & (rows["sparsity"] == 0.95)].sort_values("mor")
    best, second = rows["method"].iloc[:2]
    assert part.title.startswith(f"{best} 95 %") and other.title.startswith(f"{second} 95 %")


def test_models_pruned_on_the_task_itself_are_shown_where_there_are_no_others(make_study):
    study = make_study(seeds=(0,), tasks=("birds",), modes=("linear-sgd",))
    pruned = study.frame["method"] != "dense"
    only = study.frame[~pruned | study.frame["mode"].eq("upstream")]  # a dense probe beside it
    comparison = compare(only, allow_unequal=True)
    groups = tables.groups(comparison.methods, only)
    nothing = pd.DataFrame()
    made = Material(
        only, nothing, {"held_fixed": {}}, groups, comparison, nothing,
        predictions=study.predictions, images=images,
    )  # fmt: skip
    (part,) = section(made).parts
    assert part.title.endswith("sparse, upstream") and part.pictures
    assert set(part.tables[0].frame["task"]) == {"pictures"}
    whole = compare(study.frame)
    both = dataclasses.replace(
        made, frame=study.frame, comparison=whole, groups=tables.groups(whole.methods, study.frame)
    )
    (part,) = section(both).parts
    assert set(part.tables[0].frame["task"]) == {"birds"}
