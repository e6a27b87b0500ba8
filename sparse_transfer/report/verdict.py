"""The verdict in plain sentences: what zeros cost, what is decided, what is not, what they save."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from sparse_transfer.report.canvas import percent
from sparse_transfer.report.cells import records
from sparse_transfer.report.cost_tables import regime
from sparse_transfer.report.tables import Group
from sparse_transfer.statistics import Comparison

MOST_PAIRS = 4  # pairs of methods that a sentence names
NO_INTERVALS = "Demo: one upstream seed and no intervals, so nothing here is decided."


def sentences(
    groups: Sequence[Group],
    comparison: Comparison | None,
    contrasts: pd.DataFrame,
    measured: pd.DataFrame,
    *,
    is_demo: bool,
    failures: int,
) -> list[str]:
    """The cost of zeros and what is decided, per arm and upstream model; then what failed.

    The first paragraph can stand alone.

    Args:
        groups, comparison: from `tables.groups` and `statistics.compare`; None without results.
        contrasts: rows of `statistics.contrast`; measured: of `cost_tables.measurements`.
        is_demo: the experiment is labelled a demo, whose intervals are not shown.
        failures: how many runs failed.
    """
    paragraphs = []
    if comparison is not None:
        places = list(dict.fromkeys((group.arm, group.model) for group in groups))
        for arm, model in places:
            own = [group for group in groups if (group.arm, group.model) == (arm, model)]
            cost, *rest = _parts(own, comparison, contrasts, is_demo=is_demo)
            paragraphs.append(f"{arm}, {model}: {cost}" if len(places) > 1 else cost)
            rest.append(_speed(arm, model, measured))
            paragraphs.append(" ".join(part for part in rest if part))
        paragraphs = [text for text in paragraphs if text]
    if is_demo and paragraphs:
        paragraphs.append(NO_INTERVALS)
    if not paragraphs:
        paragraphs.append("There is no finished result to report.")
    if failures:
        runs = "one run" if failures == 1 else f"{failures} runs"
        paragraphs.append(
            f"{runs[0].upper()}{runs[1:]} failed; the page lists them with their errors."
        )
    return paragraphs


def _parts(
    groups: Sequence[Group],
    comparison: Comparison,
    contrasts: pd.DataFrame,
    *,
    is_demo: bool,
) -> list[str]:
    """Cost (first), verdicts against dense, contrasts and conditions of one upstream model."""
    transfer = [group for group in groups if group.mode != "upstream"] or list(groups)
    rows = pd.concat([group.of(comparison.methods) for group in transfer])
    sparse = rows[~rows["is_dense"]]
    if sparse.empty:
        return [_dense_only(rows, transfer)]
    if not rows["is_dense"].any():
        return [
            "There is no dense result, so what the zeros cost cannot be said: accuracies are shown "
            "without a reference."
        ]
    parts = [_cost(transfer, comparison.methods)]
    if not is_demo:
        parts.append(_decided(sparse))
        parts.append(_between([group.of(contrasts) for group in transfer if len(contrasts)]))
        if sparse["conditional"].any():
            some = "All of this is" if sparse["conditional"].all() else "Part of this is"
            parts.append(f"{some} conditional on one checkpoint per method.")
    if sparse["missing"].ne("").any():
        parts.append("Coverage is unequal; the notes under the tables say what is missing.")
    if not is_demo and not sparse.loc[sparse["mor"].notna(), "sign_agreed"].all():
        parts.append(
            "Where the mean of ratios, the ratio of means and the geometric mean differ in sign, "
            "no winner is marked."
        )
    return parts


def _cost(groups: Sequence[Group], methods: pd.DataFrame) -> str:
    """The change of error, from the best method to the worst, by mode and sparsity."""
    rows = pd.concat([group.of(methods) for group in groups])
    rows = rows[~rows["is_dense"] & rows["mor"].notna()]
    if rows.empty:
        return "No task has a dense error to compare with, so there is no relative error."
    levels = sorted(rows["sparsity"].unique(), reverse=True)
    shown = levels if len(levels) < 3 else [levels[0], levels[-1]]
    tasks, seeds = int(rows["n_tasks"].max()), int(rows["n_seeds"].max())
    if all(group.mode == "upstream" for group in groups):
        subject = "the error on the upstream task (there is no transfer here)"
    else:
        subject = f"the error on {tasks} downstream task{'s' if tasks != 1 else ''}"
    if seeds > 1:
        subject += f", averaged over {seeds} upstream seeds,"
    first, *others = (float(level) for level in shown)
    texts = [_at(first, subject, "relative to dense ", groups, rows)]
    texts += [_at(other, "it", "", groups, rows) for other in others]
    return " ".join(texts)


def _at(
    sparsity: float, subject: str, against: str, groups: Sequence[Group], rows: pd.DataFrame
) -> str:
    """`At 95 % sparsity … rises by 43 % to 88 % with …; acdc has the lowest estimate.`"""
    here = rows[rows["sparsity"] == sparsity]
    verb, sign = "changes", "+"
    if (here["mor"] > 0).all() or (here["mor"] < 0).all():
        verb, sign = ("rises" if (here["mor"] > 0).all() else "falls"), ""
    by_mode, lowest = [], []
    for group in groups:
        own = group.of(here).sort_values("mor")
        if len(own):
            values = [own["mor"].iloc[0], own["mor"].iloc[-1]]
            span = dict.fromkeys(change(value if sign else abs(value), sign) for value in values)
            by_mode.append(f"{' to '.join(span)} {_under(group)}")
            lowest.append(str(own["method"].iloc[0]))
    is_alone = here["method"].nunique() == 1
    alone = f" ({here['method'].iloc[0]})" if is_alone else ""
    text = f"At {percent(sparsity)} sparsity{alone} {subject} {verb} {against}"
    text += f"by {_listed(by_mode)}"
    if is_alone:
        return f"{text}."
    if len(set(lowest)) == 1:
        every = " in every mode" if len(lowest) > 1 else ""
        return f"{text}; {lowest[0]} has the lowest estimate{every}."
    return f"{text}; the lowest estimates are those of {_listed(lowest)}, in this order."


def _under(group: Group) -> str:
    words = {
        "upstream": "upstream",
        "linear-sgd": "with linear probes (SGD)",
        "linear-lbfgs": "with linear probes (L-BFGS)",
        "linear-online": "with linear heads on a backbone recomputed each step",
        "full": "with full fine-tuning",
    }
    own = words.get(group.mode, f"in mode {group.mode}")
    apart = group.title.partition(", ")[2]
    return f"{own} ({apart})" if apart else own


def _decided(sparse: pd.DataFrame) -> str:
    """How many comparisons with dense are decided, and at what effect the others are not."""
    compared = sparse[sparse["verdict"].ne("")]
    if compared.empty:
        return ""
    counts = compared["verdict"].value_counts().to_dict()
    n, undecided = len(compared), int(counts.get("undecided", 0))
    words = [word for word in ("better", "equivalent", "worse") if word in counts]
    total = "the comparison" if n == 1 else f"the {n} comparisons"
    parts = []
    if len(words) == 1 and not undecided:
        parts.append(f"{'Every one of ' if n > 1 else ''}{total} with dense is {words[0]}")
    elif words:
        found = _listed([f"{counts[word]} {_are(counts[word])} {word}" for word in words])
        parts.append(f"Of {total} with dense, {found}")
    if undecided:
        effect = _effect(compared[compared["verdict"] == "undecided"])
        subject = f"{undecided} {_are(undecided)}" if words else f"{total} with dense {_are(n)}"
        parts.append(f"{subject} undecided{effect}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _between(parts: Sequence[pd.DataFrame]) -> str:
    """Which methods are ahead of which, and what stays open."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return ""
    rows = pd.concat(parts)
    wins: dict[tuple[str, str], int] = {}
    for row in records(rows[rows["winner"].ne("")]):
        other = row["second"] if row["winner"] == row["first"] else row["first"]
        pair = (str(row["winner"]), str(other))
        wins[pair] = wins.get(pair, 0) + 1
    if len(wins) > MOST_PAIRS:
        return _many_contrasts(rows)
    met = Counter(frozenset((row["first"], row["second"])) for row in records(rows))
    ahead = [
        f"{winner} is ahead of {other} in {count} of {met[frozenset((winner, other))]} contrasts"
        for (winner, other), count in sorted(wins.items())
    ]
    undecided = rows[rows["verdict"] == "undecided"]
    text = f"Between methods, by mode and sparsity: {_listed(ahead)}" if ahead else ""
    if len(undecided):
        of = f"{len(undecided)} of all {len(rows)} contrasts between methods"
        clause = f"{of} {_are(len(undecided))} undecided{_effect(undecided)}"
        text = f"{text}; {clause}" if text else clause[0].upper() + clause[1:]
    return f"{text}." if text else ""


def _many_contrasts(rows: pd.DataFrame) -> str:
    """The wins of each method, where pairs are too many to be named."""
    counts = Counter(str(winner) for winner in rows["winner"] if winner)
    wins = _listed([f"{method} in {count}" for method, count in counts.most_common()])
    undecided = rows[rows["verdict"] == "undecided"]
    text = f"Of the {len(rows)} contrasts between methods (by mode and sparsity), "
    text += f"{sum(counts.values())} have a winner: {wins}"
    if len(undecided):
        text += f"; {len(undecided)} {_are(len(undecided))} undecided{_effect(undecided)}"
    return f"{text}."


def _effect(rows: pd.DataFrame) -> str:
    """`, at a minimum detectable effect of 4 % to 9 %` of the dense error."""
    known = [value for value in rows["mde"] if math.isfinite(value)]
    if not known:
        return ", with no interval to decide by"
    ends = (100 * min(known), 100 * max(known))
    low, high = (f"{end:.0f} %" if end >= 9.95 else f"{end:.1f} %" for end in ends)
    span = low if low == high else f"{low} to {high}"
    return f" at a minimum detectable effect of {span} of the dense error"


def _speed(arm: str, model: str, measured: pd.DataFrame) -> str:
    """What was measured in time; never a ratio for a backend that does not use zeros."""
    if measured.empty:
        return ""
    own = measured[(measured["arm"] == arm) & (measured["model"] == model)]
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
    return (
        f"Measured time: up to {best['speedup']:.2f}× faster than dense ({best['method']} "
        f"{percent(best['sparsity'])}; {regime(best)})."
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
