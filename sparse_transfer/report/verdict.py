"""The verdict in plain words: what zeros cost, what is decided, what they save. Short, in order.

The sentences stand in the order of their importance. Those that qualify all others are always
there; of the rest as many as a reader takes in at once (`MOST_WORDS`); the page has everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from sparse_transfer.report.canvas import percent
from sparse_transfer.report.cells import records
from sparse_transfer.report.cost_tables import regime
from sparse_transfer.report.fronts import judged, points
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import Group
from sparse_transfer.statistics import Comparison

MOST_WORDS = 120  # of one arm and upstream model, beyond what must be said
MOST_PAIRS = 3  # pairs of methods that a sentence names
NO_INTERVALS = "Demo: one upstream seed and no intervals, so nothing here is decided."


def sentences(material: Material) -> list[str]:
    """The cost of zeros and what is decided, per arm and upstream model; then what failed.

    The first paragraph can stand alone. Upstream models of which only the dense one is there speak
    in the arm's front, not in a paragraph of their own.
    """
    paragraphs: list[str] = []
    comparison = material.comparison
    if comparison is not None:
        places = _worth_a_paragraph(material, comparison)
        for place in places:
            first, rest = _paragraphs(material, place, comparison)
            paragraphs.append(f"{', '.join(place)}: {first}" if len(places) > 1 else first)
            paragraphs.append(rest)
        paragraphs = [text for text in paragraphs if text]
    if material.is_demo and paragraphs:
        paragraphs.append(NO_INTERVALS)
    if not paragraphs:
        paragraphs.append("There is no finished result to report.")
    if failures := len(material.facts["failures"]):
        runs = "One run" if failures == 1 else f"{failures} runs"
        paragraphs.append(f"{runs} failed; the page lists them with their errors.")
    return paragraphs


def _worth_a_paragraph(material: Material, comparison: Comparison) -> list[Place]:
    methods = comparison.methods
    pruned = methods[~methods["is_dense"].astype(bool)]
    has_sparse = set(zip(pruned["arm"], pruned["model"], strict=True))
    arms = {arm for arm, _ in has_sparse}
    return [place for place in material.places if place in has_sparse or place[0] not in arms]


def _paragraphs(material: Material, place: Place, comparison: Comparison) -> tuple[str, str]:
    """The cost; and what is decided, between methods, saved, and to be kept in mind."""
    groups = [group for group in material.of(place) if group.mode != "upstream"]
    groups = groups or list(material.of(place))
    rows = pd.concat([group.of(comparison.methods) for group in groups])
    pruned = rows[~rows["is_dense"].astype(bool)]
    if pruned.empty:
        return _dense_only(rows, groups), _speed(material, place)
    if not rows["is_dense"].any():
        text = "There is no dense result, so what the zeros cost cannot be said: accuracies are "
        return f"{text}shown without a reference.", _speed(material, place)
    cost = _cost(groups, comparison.methods)
    must, may = [], []  # (order, sentence)
    if not material.is_demo:
        must.append((0, _decided(pruned)))
        may.append((2, _between(groups, material.contrasts)))
        may.append((6, _worse_than_linear(material, place, comparison)))
        if pruned["conditional"].any():
            some = "All of this is" if pruned["conditional"].all() else "Part of this is"
            must.append((8, f"{some} conditional on one checkpoint per method."))
        may.append((1, _probes(pruned)))
    if pruned["missing"].ne("").any():
        text = "Coverage is unequal; the notes under the tables say what is missing."
        must.append((3, text))
    may.append((4, _front(material, place)))
    may.append((5, _speed(material, place)))
    words = _count(" ".join([cost, *(text for _, text in must)]))
    kept = list(must)
    for order, text in sorted(may):
        if text and words + _count(text) <= MOST_WORDS:
            words += _count(text)
            kept.append((order, text))
    return cost, " ".join(text for _, text in sorted(kept) if text)


def _probes(pruned: pd.DataFrame) -> str:
    """On how many increases the second linear probe contradicts the first one in sign."""
    first = pruned[pruned["mode"] == "linear-sgd"]
    count = int(first["probe_dependent"].fillna(False).sum())
    increases = "one increase" if count == 1 else f"{count} increases"
    words = f"On the sign of {increases} the two linear probes (SGD, L-BFGS) disagree."
    return words if count else ""


def _count(text: str) -> int:
    """Words as they are read: a number with its percent sign is one."""
    return len(text.replace(" %", "%").split())


def _cost(groups: Sequence[Group], methods: pd.DataFrame) -> str:
    """The change of error, from the best method to the worst, by mode, at two sparsities.

    They are the highest and the lowest of those that most methods have: an extreme level of one
    method is no headline. Of two linear probes, the first speaks.
    """
    modes = {group.mode for group in groups}
    groups = [g for g in groups if g.mode != "linear-lbfgs" or "linear-sgd" not in modes]
    rows = pd.concat([group.of(methods) for group in groups])
    rows = rows[~rows["is_dense"].astype(bool) & rows["mor"].notna()]
    if rows.empty:
        return "No task has a dense error to compare with, so there is no relative error."
    pruned = rows[rows["sparsity"] > 0]
    smaller = rows[rows["sparsity"] == 0]
    tasks, seeds = int(rows["n_tasks"].max()), int(rows["n_seeds"].max())
    if all(group.mode == "upstream" for group in groups):
        subject = "the error on the upstream task (there is no transfer here)"
    else:
        subject = f"the error on {tasks} downstream task{'s' if tasks != 1 else ''}"
    if seeds > 1:
        subject += f", averaged over {seeds} upstream seeds,"
    texts = []
    if len(pruned):
        methods_at = pruned.groupby("sparsity")["method"].nunique()
        shared = sorted(methods_at[methods_at == methods_at.max()].index, reverse=True)
        for level in dict.fromkeys([shared[0], shared[-1]]):
            here = pruned[pruned["sparsity"] == level]
            where = f"At {percent(level)} sparsity"
            texts.append(_at(where, subject, not texts, groups, here))
            subject = "it"
    if len(smaller):
        texts.append(_at("Of smaller dense models", subject, not texts, groups, smaller))
    return " ".join(texts)


def _at(
    where: str, subject: str, is_first: bool, groups: Sequence[Group], here: pd.DataFrame
) -> str:
    """`At 95 % sparsity … rises relative to dense by 43 % (acdc) to 88 % (gmp) with linear …`."""
    verb, sign = "changes", "+"
    if (here["mor"] > 0).all() or (here["mor"] < 0).all():
        verb, sign = ("rises" if (here["mor"] > 0).all() else "falls"), ""
    is_alone = here["method"].nunique() == 1
    by_mode = []
    for group in groups:
        own = group.of(here).sort_values("mor", ascending=verb != "falls")
        if len(own):
            ends = records(own.iloc[[0, -1]] if len(own) > 1 else own)
            named = [
                change(row["mor"] if sign else abs(row["mor"]), sign)
                + ("" if is_alone else f" ({row['method']})")
                for row in ends
            ]
            by_mode.append(f"{' to '.join(dict.fromkeys(named))} {_under(group)}")
    alone = f" ({here['method'].iloc[0]})" if is_alone else ""
    against = "relative to dense " if is_first else ""
    return f"{where}{alone} {subject} {verb} {against}by {_listed(by_mode)}."


def _under(group: Group) -> str:
    words = {
        "upstream": "upstream",
        "linear-sgd": "with linear probes",
        "linear-lbfgs": "with linear probes (L-BFGS)",
        "linear-online": "with linear heads on a backbone recomputed each step",
        "full": "with full fine-tuning",
    }
    own = words.get(group.mode, f"in mode {group.mode}")
    apart = group.title.partition(", ")[2]
    return f"{own} ({apart})" if apart else own


def _decided(pruned: pd.DataFrame) -> str:
    """How many comparisons with dense are decided, and at what effect the others are not."""
    compared = pruned[pruned["verdict"].ne("")]
    if compared.empty:
        return ""
    counts = compared["verdict"].value_counts().to_dict()
    n, undecided = len(compared), int(counts.get("undecided", 0))
    words = [word for word in ("better", "equivalent", "worse") if word in counts]
    if len(words) == 1 and not undecided:
        every = f"Every one of the {n} comparisons" if n > 1 else "The comparison"
        return f"{every} with dense is {words[0]}."
    parts = [f"{counts[word]} {_are(counts[word])} {word}" for word in words]
    if undecided:
        effect = _effect(compared[compared["verdict"] == "undecided"])
        parts.append(f"{undecided} {_are(undecided)} undecided{effect}")
    total = f"Of {n} comparisons with dense" if n > 1 else "Of one comparison with dense"
    return f"{total}, {_listed(parts)}."


def _between(groups: Sequence[Group], contrasts: pd.DataFrame) -> str:
    """Which methods are ahead of which: those declared in advance, if any were."""
    if contrasts.empty:
        return ""
    rows = pd.concat([group.of(contrasts) for group in groups])
    if rows["declared"].eq("in advance").any():
        rows = rows[rows["declared"] == "in advance"]
    if rows.empty:
        return ""
    if turned := _reversed(groups, rows):
        return turned
    wins: Counter[tuple[str, str]] = Counter()
    for row in records(rows[rows["winner"].ne("")]):
        other = row["second"] if row["winner"] == row["first"] else row["first"]
        wins[(str(row["winner"]), str(other))] += 1
    undecided = rows[rows["verdict"] == "undecided"]
    if not wins:
        of = f"{len(undecided)} of {len(rows)} contrasts between methods"
        are = f"{_are(len(undecided))} undecided{_effect(undecided)}"
        return f"{of} {are}." if len(undecided) else ""
    if len(wins) > MOST_PAIRS:
        by_method: Counter[str] = Counter()
        for (winner, _), count in wins.items():
            by_method[winner] += count
        (best, count), *_ = by_method.most_common(1)
        text = f"Between methods, {best} is ahead most often, in {count} of {len(rows)} contrasts"
    else:
        met = Counter(frozenset((row["first"], row["second"])) for row in records(rows))
        ahead = [
            f"{winner} is ahead of {other} in {n} of {met[frozenset((winner, other))]} contrasts"
            for (winner, other), n in sorted(wins.items())
        ]
        text = f"Between methods, {_listed(ahead)}"
    rest = f"; {len(undecided)} {_are(len(undecided))} undecided" if len(undecided) else ""
    return f"{text}{rest}."


def _reversed(groups: Sequence[Group], rows: pd.DataFrame) -> str:
    """A pair of methods that both win against the other, at one sparsity, in different modes."""
    winners: dict[tuple[str, str], dict[float, dict[str, str]]] = {}
    for row in records(rows[rows["winner"].ne("")]):
        pair = (str(row["first"]), str(row["second"]))
        at = winners.setdefault(pair, {}).setdefault(row["sparsity"], {})
        at[row["mode"]] = str(row["winner"])
    turned = {
        pair: [level for level, by_mode in levels.items() if len(set(by_mode.values())) > 1]
        for pair, levels in winners.items()
    }
    # of several, the pair that changes places most often and wins most in doing so
    found = max(turned, key=lambda pair: (len(turned[pair]), _wins(rows, pair)), default=None)
    if found is None or not turned[found]:
        return ""
    level = turned[found][0]
    by_mode = winners[found][level]
    first = next(group for group in groups if group.mode in by_mode)
    ahead = by_mode[first.mode]
    behind = found[1] if ahead == found[0] else found[0]
    second = next(group for group in groups if by_mode.get(group.mode) == behind)
    many = len([pair for pair, levels in turned.items() if levels])
    others = f" (so for {many - 1} more pairs)" if many > 1 else ""
    return (
        f"Which method is better depends on the mode: {ahead} is ahead of {behind} "
        f"{_under(first)} and behind it {_under(second)}{others}."
    )


def _wins(rows: pd.DataFrame, pair: tuple[str, str]) -> int:
    return int(rows["winner"].isin(pair).sum())


def _effect(rows: pd.DataFrame) -> str:
    """`, as only effects above 4 % to 9 % of the dense error could be found`."""
    known = [value for value in rows["mde"] if math.isfinite(value)]
    if not known:
        return ", with no interval to decide by"
    ends = (100 * min(known), 100 * max(known))
    low, high = (f"{end:.0f} %" if end >= 9.95 else f"{end:.1f} %" for end in ends)
    span = low if low == high else f"{low} to {high}"
    return f", as only effects above {span} of the dense error could be found"


def _worse_than_linear(material: Material, place: Place, comparison: Comparison) -> str:
    """Fine-tuning of all weights that ended below the probe, and whose it was."""
    tasks = comparison.tasks
    if tasks.empty:
        return ""
    own = tasks[(tasks["arm"] == place[0]) & (tasks["model"] == place[1])]
    found = own[own["worse_than_linear"].fillna(False).astype(bool)]
    if found.empty:
        return ""
    counts = found["method"].value_counts()
    whose = _listed([f"{method} {count}" for method, count in list(counts.items())[:3]])
    n = int(own["worse_than_linear"].notna().sum())
    return (
        f"Full fine-tuning ended below the linear probe in {len(found)} of {n} cells ({whose}): "
        "its profile does not suit these weights."
    )


def _front(material: Material, place: Place) -> str:
    """How many sparse points something beats in both error and MACs; once per arm."""
    if place != next(p for p in material.places if p[0] == place[0]):
        return ""
    n, smaller = 0, 0
    for own in points(material, place[0]):
        frame = own.by_macs
        if frame["cost"].nunique() < 2:
            continue
        shown = judged(frame, own.main, saves="{}")
        sparse = shown[shown["sparsity"] > 0]
        n += len(sparse)
        smaller += int(sparse["beaten_by_dense"].sum())
    if not smaller:
        return ""  # that one pruned method beats another is said by the contrasts
    return (
        f"On error against MACs, a smaller dense model beats {smaller} of {n} sparse points in "
        "both."
    )


def _speed(material: Material, place: Place) -> str:
    """What was measured in time; never a ratio for a backend that does not use zeros."""
    measured = material.measured
    if measured.empty:
        return ""
    own = measured[(measured["arm"] == place[0]) & (measured["model"] == place[1])]
    used = own[own["uses_zeros"] & own["speedup"].notna()]
    if own.empty:
        return ""
    if used.empty:
        names = sorted(own["backend"].unique())
        several = len(names) > 1
        subject = (
            f"the backend{'s' if several else ''} {_listed(names)} do{'' if several else 'es'}"
        )
        return f"Measured time: {subject} not use zeros, so no time is saved there."
    best = max(records(used), key=lambda row: row["speedup"])
    faster = f"{best['speedup']:.2f} times as fast as dense"
    if best["over"] not in ("", best["backend"]):
        faster += f" on {best['over']}"
    return (
        f"Measured time: at best {faster} ({best['method']} {percent(best['sparsity'])}; "
        f"{regime(best)})."
    )


def _dense_only(rows: pd.DataFrame, groups: Sequence[Group]) -> str:
    found = [
        f"{100 * row['mean_value']:.1f} % {_under(group)}"
        for group in groups
        for row in records(group.of(rows))
        if math.isfinite(row["mean_value"])
    ]
    what = f"It reaches a mean accuracy of {_listed(found)}." if found else ""
    return f"Only the dense model has results; nothing was pruned. {what}".strip()


def change(fraction: float, sign: str = "+") -> str:
    """A relative change in percent: `+12 %`, `−3.1 %`; with `sign=""` no plus sign."""
    value = 100 * fraction
    text = f"{value:{sign}.0f}" if abs(value) >= 9.95 else f"{value:{sign}.1f}"
    return f"{text} %".replace("-", "−")


def _listed(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    joiner = ", and " if any(", " in item for item in items) else " and "
    return f"{', '.join(items[:-1])}{joiner}{items[-1]}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
