"""The verdict: what matters first, in plain words, and no longer than it must be."""

from __future__ import annotations

import pandas as pd
import pytest

from sparse_transfer.report.write import build

EMPTY = pd.DataFrame()
EFFECTS = {("a", "linear-sgd"): 0.02, ("b", "linear-sgd"): 0.3}
EFFECTS |= {("a", "full"): 0.4, ("b", "full"): 0.05}


def made(effects: dict[tuple[str, str], float] | None = None, **columns: object) -> pd.DataFrame:
    """Two methods at 90 % and 95 % in two modes on four tasks, three seeds; effects as given."""
    effects = effects or EFFECTS
    rows = []
    for place, task in enumerate(("birds", "cars", "dogs", "signs")):
        for seed in (0, 1, 2):
            dense = 0.2 + 0.05 * place + 0.004 * seed
            for mode in ("linear-sgd", "full"):
                cells = [("dense", 0.0, dense)]
                for (method, own), effect in effects.items():
                    wobble = 1 + 0.01 * ((place + seed) % 3)
                    if own == mode:
                        cells.append((method, 0.9, dense * (1 + effect * wobble)))
                        cells.append((method, 0.95, dense * (1 + 1.1 * effect * wobble)))
                for method, sparsity, error in cells:
                    rows.append(
                        {"arm": "main", "model": "net", "method": method, "sparsity": sparsity}
                        | {"upstream_seed": seed, "task": task, "mode": mode, "value": 1 - error}
                    )
    shared = {"stage": "full", "run": "r", "recipe": "x", "profile": "p", "image_size": 32}
    shared |= {"split_hash": "s", "metric": "top1", "transfer_seed": 0}
    return pd.DataFrame(rows).assign(**shared | columns)


def verdict(frame: pd.DataFrame, **facts: object) -> list[str]:
    return build(frame, EMPTY, facts, None).verdict


def test_methods_that_change_places_between_modes_are_named():
    text = verdict(made())[1]
    assert (
        "Which method is better depends on the mode: a is ahead of b with linear probes and "
        "behind it with full fine-tuning." in text
    )


def test_methods_that_keep_their_places_do_not_reverse():
    effects = EFFECTS | {("a", "full"): 0.05, ("b", "full"): 0.4}
    text = verdict(made(effects))[1]
    assert "depends on the mode" not in text
    assert "Between methods, a is ahead of b in 4 of 4 contrasts." in text


def test_only_contrasts_declared_in_advance_are_told_where_there_are_any():
    effects = EFFECTS | {("a", "full"): 0.05, ("b", "full"): 0.4}
    effects |= {("c", "linear-sgd"): 0.6, ("c", "full"): 0.6}
    text = verdict(made(effects), contrasts=[("b", "c")])[1]
    assert "Between methods, b is ahead of c in 4 of 4 contrasts." in text


def test_the_lede_speaks_of_levels_that_most_methods_have():
    frame = made()
    extreme = frame[(frame["method"] == "a") & (frame["sparsity"] == 0.95)]
    frame = pd.concat([frame, extreme.assign(sparsity=0.99)], ignore_index=True)
    lede = verdict(frame)[0]
    assert lede.startswith("At 95 % sparsity the error on 4 downstream tasks, averaged over 3")
    assert "99 %" not in lede
    assert "by 2.2 % (a) to 33 % (b) with linear probes" in lede


def test_a_smaller_dense_model_that_beats_pruned_ones_is_said():
    frame = made(mac_ratio=1.0)
    pruned = frame["sparsity"] > 0
    frame["macs"] = 1e7 * (1 - frame["sparsity"]) * 1.2
    frame.loc[~pruned, "macs"] = 1e7
    small = frame[~pruned].assign(model="tiny", macs=1e5, run="t")
    found = verdict(pd.concat([frame, small], ignore_index=True))
    assert len(found) == 2  # tiny, of which only the dense model is there, has no paragraph
    words = "a smaller dense model beats 8 of 8 sparse points in both"
    assert words in found[1]


def test_fine_tuning_below_the_probe_is_said_with_its_methods():
    effects = EFFECTS | {("b", "full"): 2.0, ("a", "full"): 0.0, ("b", "linear-sgd"): 0.05}
    text = verdict(made(effects))[1]
    assert "Full fine-tuning ended below the linear probe in 8 of 20 cells (b 8)" in text


def test_probes_that_contradict_each_other_are_said():
    frame = made()
    other = frame[frame["mode"] == "linear-sgd"].assign(mode="linear-lbfgs")
    better = other["method"] == "a"
    other.loc[better, "value"] += 0.1
    text = verdict(pd.concat([frame, other], ignore_index=True))[1]
    assert "On the sign of 2 increases the two linear probes (SGD, L-BFGS) disagree." in text


@pytest.mark.parametrize("methods", [2, 6])
def test_it_stays_short_however_much_there_is_to_say(methods):
    effects = {
        (f"method-{n}", mode): 0.1 * (n + 1)
        for n in range(methods)
        for mode in ("linear-sgd", "full")
    }
    text = " ".join(verdict(made(effects)))
    assert len(text.replace(" %", "%").split()) <= 120
