"""Tables of upstream accuracy from the results of an experiment, and its random controls.

    python benchmarks/upstream.py table all-pruners --against gmp [--runs runs]
    python benchmarks/upstream.py learned all-pruners --levels 0.9 0.95
    python benchmarks/upstream.py controls all-pruners --sparsity 0.9 > controls.yaml
    python benchmarks/upstream.py floor all-pruners all-pruners-controls
    python benchmarks/upstream.py trend progressive-vs-uniform progressive-1 uniform

`table`: one row per method and sparsity: accuracy (mean and standard deviation over seeds), the
difference from a reference paired by seed with its 95 % interval, the minimum detectable effect
(80 % power), mean rank over the seeds that all methods share, measured sparsity, MACs, dead
channels; at the end mean ranks over all arms, sparsities and seeds. Words of decision stand only
where the experiment declared the contrast. With `--arms` the arms named are one table (same seeds,
other recipes). `learned`: the trials of methods without a target, interpolated linearly in the
logarithm of the density. `controls` writes an experiment that prunes at random to the very number
of weights that each run left in each layer, seed by seed; `floor` compares the two. `trend`: does
the difference of two methods grow with the compression? Its slope per doubling of
1 / (1 - sparsity), over seeds.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sparse_transfer.statistics import friedman, minimum_detectable_effect, t_interval
from sparse_transfer.store import Store, read_json

CONTROL = "random like "


@dataclass(frozen=True)
class Upstream:
    """One finished pruning run."""

    arm: str
    method: str
    sparsity: float
    seed: int
    result: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Upstream test accuracy in percent."""
        return 100 * self.result["rows"][0]["metrics"]["top1"]["value"]

    @property
    def measured(self) -> float:
        """Measured sparsity, a share."""
        return self.result["measured_sparsity"]

    @property
    def macs(self) -> float:
        """Multiply-accumulates with zeros skipped."""
        return self.result["macs"]

    @property
    def dead(self) -> float:
        """Share of filters that are entirely zero, in percent."""
        layers = [layer for layer in self.result["layers"] if layer.get("channels")]
        channels = sum(layer["channels"] for layer in layers)
        return 100 * sum(layer["dead_channels"] for layer in layers) / max(1, channels)


Cells = dict[str, dict[int, Upstream]]  # method → seed → run
Contrasts = set[frozenset[str]]  # those that were declared in advance


def finished(name: str, store: Store) -> tuple[list[Upstream], Contrasts]:
    """Every finished pruning run of an experiment, and its declared contrasts."""
    record = read_json(store.root / "experiments" / f"{name}.json")
    runs = [
        Upstream(
            arm,
            run["method"],
            run["sparsity"],
            run["seed"],
            read_json(store.folder("prune", run["id"]) / "result.json"),
        )
        for arm, content in record["arms"].items()
        for run in content["runs"]
        if run["stage"] == "prune" and store.status("prune", run["id"]) == "finished"
    ]
    return runs, {frozenset(pair) for pair in record["contrasts"]}


def blocks(runs: Sequence[Upstream]) -> dict[tuple[str, float], Cells]:
    """The runs by arm and sparsity; a smaller dense net stands at the sparsity of its MACs."""
    found: dict[tuple[str, float], Cells] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        levels = sorted({run.sparsity for run in own if run.sparsity}) or [0.0]
        whole = max(run.macs if run.method == "dense" else 0 for run in own)
        for run in own:
            at = [run.sparsity] if run.sparsity else levels
            if not run.sparsity and run.method != "dense" and whole:
                distances = {
                    abs(math.log((1 - level) * whole / run.macs)): level for level in levels
                }
                at = [distances[min(distances)]]
            for level in at:
                found.setdefault((arm, level), {}).setdefault(run.method, {})[run.seed] = run
    return found


def table(runs: Sequence[Upstream], against: str, contrasts: Contrasts) -> Iterable[str]:
    """Markdown: a table per arm and sparsity, best first, and ranks over all of them."""
    found = blocks(runs)
    for (arm, level), cells in found.items():
        yield f"\n### {arm}, {100 * level:.4g} %\n" if level else f"\n### {arm}\n"
        yield from _rows(cells, against, contrasts)
    everywhere = sorted(set.intersection(*(set(cells) for cells in found.values())))
    scores = [
        [cells[method][seed].accuracy for method in everywhere]
        for cells in found.values()
        if everywhere
        for seed in _shared_seeds([cells[method] for method in everywhere])
    ]
    if len(everywhere) > 1 and scores:
        ranks = friedman(np.asarray(scores))
        pairs = sorted(zip(ranks.mean_ranks, everywhere, strict=True))
        told = ", ".join(f"{method} {rank:.2f}" for rank, method in pairs)
        yield f"\nMean rank over {len(scores)} blocks (Friedman p = {ranks.p:.2g}): {told}."


def _shared_seeds(by_seed: Sequence[dict[int, Upstream]]) -> list[int]:
    return sorted(set.intersection(*(set(seeds) for seeds in by_seed)))


def _rows(cells: Cells, against: str, contrasts: Contrasts) -> Iterable[str]:
    methods = list(cells)
    ranks: dict[str, float] = {}
    shared = _shared_seeds(list(cells.values()))
    if shared and len(methods) > 1:
        scores = [[cells[method][seed].accuracy for method in methods] for seed in shared]
        ranks = dict(zip(methods, friedman(np.asarray(scores)).mean_ranks, strict=True))
    dense = [run.macs for run in cells.get("dense", {}).values()]
    yield (
        f"| method | n | accuracy, % | sd | − {against} [95 %] | MDE | rank | sparsity, % | MACs "
        "| dead channels, % |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    means = {m: np.mean([run.accuracy for run in cells[m].values()]) for m in methods}
    for method in sorted(methods, key=lambda m: -means[m]):
        own = list(cells[method].values())
        accuracy = np.array([run.accuracy for run in own])
        sd = f"{accuracy.std(ddof=1):.1f}" if len(own) > 1 else ""
        pairs = sorted(set(cells[method]) & set(cells.get(against, {})))
        difference = ["", ""]
        if pairs and method != against:
            gaps = [cells[method][s].accuracy - cells[against][s].accuracy for s in pairs]
            difference = _difference(gaps, frozenset((method, against)) in contrasts)
        whole = dense[0] if dense else own[0].result["macs_dense"]
        yield (
            f"| {method} | {len(own)} | {accuracy.mean():.1f} | {sd} | {difference[0]} "
            f"| {difference[1]} | {f'{ranks[method]:.1f}' if ranks else ''} "
            f"| {100 * np.mean([run.measured for run in own]):.2f} "
            f"| {np.mean([whole / run.macs for run in own]):.2f}× fewer "
            f"| {np.mean([run.dead for run in own]):.1f} |"
        )


def _difference(gaps: Sequence[float], is_declared: bool) -> list[str]:
    """`mean [low, high]` of paired differences in points, and the effect that could be found."""
    interval = t_interval(gaps)
    if len(gaps) < 2:
        return [f"{interval.estimate:+.1f} (one seed)", ""]
    word = ""
    if is_declared:
        decided = " better" if interval.low > 0 else " worse" if interval.high < 0 else ""
        word = decided or " undecided"
    detectable = minimum_detectable_effect(float(np.std(gaps, ddof=1)), len(gaps))
    limits = f"[{interval.low:+.1f}, {interval.high:+.1f}]"
    return [f"{interval.estimate:+.1f} {limits}{word}", f"{detectable:.1f}"]


def trend(runs: Sequence[Upstream], first: str, second: str, is_declared: bool) -> Iterable[str]:
    """Markdown: the difference by sparsity in the first arm that has both, and its slope."""
    arms = {run.arm for run in runs if run.method == first}
    arm = next(run.arm for run in runs if run.method == second and run.arm in arms)
    found = {(run.method, run.sparsity, run.seed): run.accuracy for run in runs if run.arm == arm}
    both = [{(s, x) for method, s, x in found if method == name} for name in (first, second)]
    levels = sorted({sparsity for sparsity, _ in both[0] & both[1]})
    seeds = sorted({x for _, x in both[0] if all((s, x) in both[0] & both[1] for s in levels)})
    gaps = {s: [found[first, s, x] - found[second, s, x] for x in seeds] for s in levels}
    yield f"| fewer by | {first} − {second}, points [95 %], n = {len(seeds)} | MDE |"
    yield "|---|---|---|"
    for level in levels:
        text, detectable = _difference(gaps[level], is_declared)
        yield f"| {1 / (1 - level):.0f}× | {text} | {detectable} |"
    if len(levels) < 2:
        return
    doublings = [math.log2(1 / (1 - level)) for level in levels]
    slopes = [np.polyfit(doublings, [gaps[s][i] for s in levels], 1)[0] for i in range(len(seeds))]
    text, detectable = _difference(slopes, is_declared)
    yield f"| slope per doubling | {text} | {detectable} |"


def learned(runs: Sequence[Upstream], levels: Sequence[float]) -> Iterable[str]:
    """Markdown: trials of methods without a target, and accuracy interpolated to sparsities."""
    families: dict[str, dict[str, list[Upstream]]] = {}
    for run in runs:
        if not run.sparsity and run.measured > 0:
            plugin = run.result["summary"]["method"]
            families.setdefault(plugin, {}).setdefault(run.method, []).append(run)
    yield "| method | trial | n | measured sparsity, % | accuracy, % |"
    yield "|---|---|---|---|---|"
    for plugin, trials in families.items():
        points = []
        for label, own in trials.items():
            sparsity = float(np.mean([run.measured for run in own]))
            accuracy = float(np.mean([run.accuracy for run in own]))
            points.append((math.log(1 - sparsity), accuracy))
            yield f"| {plugin} | {label} | {len(own)} | {100 * sparsity:.2f} | {accuracy:.1f} |"
        densities, accuracies = zip(*sorted(points), strict=True)
        for level in levels:
            at = math.log(1 - level)
            inside = densities[0] <= at <= densities[-1]
            value = f"{np.interp(at, densities, accuracies):.1f}" if inside else "not reached"
            yield f"| {plugin} | interpolated | | {100 * level:g} | {value} |"


def controls(
    name: str, runs: Sequence[Upstream], sparsity: float, methods: Sequence[str] | None = None
) -> dict[str, Any]:
    """The experiment of random controls: one arm per seed, one method per run of that seed.

    A run without a target has an arm of its own, at the sparsity that it learned.
    """
    path = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms: dict[str, dict[str, Any]] = {}
    for run in runs:
        has_learned = not run.sparsity and run.measured > 0
        if (run.sparsity != sparsity and not has_learned) or run.method.startswith("random"):
            continue
        if methods and run.method not in methods:
            continue
        kept = {n: layer["kept"] for n, layer in run.result["summary"]["layers"].items()}
        method = {"name": "random", "label": CONTROL + run.method, "options": {"layers": kept}}
        arm = f"{run.method}-seed-{run.seed}" if has_learned else f"seed-{run.seed}"
        level = run.measured if has_learned else sparsity
        prune = {"methods": [], "sparsities": [level], "seeds": [run.seed], "dense": False}
        arms.setdefault(arm, {"name": arm, "prune": prune})["prune"]["methods"].append(method)
    shared = {key: raw[key] for key in ("upstream", "recipe")}
    title = f"Random masks at the densities of {name}"
    return {"name": f"{name}-controls", "title": title, **shared, "arms": list(arms.values())}


def floor(runs: Sequence[Upstream], control: Sequence[Upstream]) -> Iterable[str]:
    """Markdown: each method minus random pruning at its own densities, paired by seed."""
    random = {
        (run.method.removeprefix(CONTROL), run.sparsity, run.seed): run.accuracy for run in control
    }
    yield "| method | n | accuracy, % | random, same densities | difference [95 %] | MDE |"
    yield "|---|---|---|---|---|---|"
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        pairs = [
            (run.accuracy, random[key])
            for run in runs
            if (key := (run.method, run.sparsity or run.measured, run.seed)) in random
            and run.method == method
        ]
        if pairs:
            own, other = np.array(pairs).T
            text, detectable = _difference(list(own - other), is_declared=True)
            row = f"| {method} | {len(pairs)} | {own.mean():.1f} | {other.mean():.1f} | {text} "
            rows.append((float((own - other).mean()), row + f"| {detectable} |"))
    yield from (row for _, row in sorted(rows, reverse=True))


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    commands = parser.add_subparsers(dest="command", required=True)
    of = {name: commands.add_parser(name) for name in ("table", "learned", "controls", "floor")}
    of["trend"] = commands.add_parser("trend")
    for command in of.values():
        command.add_argument("experiment")
    of["table"].add_argument("--against", required=True)
    of["table"].add_argument("--arms", nargs="+", help="put these arms into one table")
    of["learned"].add_argument("--levels", type=float, nargs="+", required=True)
    of["controls"].add_argument("--sparsity", type=float, required=True)
    of["controls"].add_argument("--methods", nargs="+", help="only for these; default: all")
    of["floor"].add_argument("controls")
    of["trend"].add_argument("first")
    of["trend"].add_argument("second")
    options = parser.parse_args()
    store = Store(options.runs)
    runs, contrasts = finished(options.experiment, store)
    if options.command == "table":
        if options.arms:
            together = " + ".join(options.arms)
            runs = [replace(run, arm=together) for run in runs if run.arm in options.arms]
        lines = table(runs, options.against, contrasts)
    elif options.command == "trend":
        is_declared = frozenset((options.first, options.second)) in contrasts
        lines = trend(runs, options.first, options.second, is_declared)
    elif options.command == "learned":
        lines = learned(runs, options.levels)
    elif options.command == "controls":
        made = controls(options.experiment, runs, options.sparsity, options.methods)
        lines = [yaml.safe_dump(made)]
    else:
        lines = floor(runs, finished(options.controls, store)[0])
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
