"""Tables of upstream accuracy from the results of an experiment, and its random controls.

    python benchmarks/upstream.py table all-pruners --against gmp [--runs runs]
    python benchmarks/upstream.py controls all-pruners --sparsity 0.9 > controls.yaml
    python benchmarks/upstream.py floor all-pruners all-pruners-controls
    python benchmarks/upstream.py trend progressive progressive-1 uniform

`table`: one row per method and sparsity: accuracy (mean and standard deviation over seeds), the
difference from a reference paired by seed with its 95 % interval, the minimum detectable effect
(80 % power), mean rank over the seeds that all methods share, measured sparsity, MACs, dead
channels. `controls` writes an experiment that prunes at random to the very number of weights that
each run left in each layer, seed by seed; `floor` compares the two. `trend` tells whether the
difference of two methods grows with the compression: its slope per doubling of 1 / (1 - sparsity),
over seeds. With `--arms` the arms named are put into one table (same seeds, other recipes).
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
    def dead(self) -> float:
        """Share of filters that are entirely zero, in percent."""
        layers = [layer for layer in self.result["layers"] if layer.get("channels")]
        channels = sum(layer["channels"] for layer in layers)
        return 100 * sum(layer["dead_channels"] for layer in layers) / max(1, channels)


def finished(name: str, store: Store) -> list[Upstream]:
    """Every finished pruning run of an experiment."""
    record = read_json(store.root / "experiments" / f"{name}.json")
    return [
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


def table(runs: Sequence[Upstream], against: str) -> Iterable[str]:
    """Markdown, arm by arm and sparsity by sparsity, best first."""
    for arm in dict.fromkeys(run.arm for run in runs):
        levels = sorted({run.sparsity for run in runs if run.arm == arm and run.sparsity})
        for level in levels or [0.0]:
            cells: dict[str, dict[int, Upstream]] = {}
            for run in runs:
                if run.arm == arm and (run.sparsity == level or not run.sparsity):
                    cells.setdefault(run.method, {})[run.seed] = run
            yield f"\n### {arm}, {100 * level:g} %\n" if level else f"\n### {arm}\n"
            yield from _rows(cells, against)


def _rows(cells: dict[str, dict[int, Upstream]], against: str) -> Iterable[str]:
    shared = sorted(set.intersection(*(set(seeds) for seeds in cells.values())))
    methods = list(cells)
    ranks: dict[str, float] = dict.fromkeys(methods, math.nan)
    if shared:
        scores = [[cells[method][seed].accuracy for method in methods] for seed in shared]
        found = friedman(np.asarray(scores))
        ranks = dict(zip(methods, found.mean_ranks, strict=True))
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
            difference = _difference(gaps)
        sparsity = 100 * np.mean([run.result["measured_sparsity"] for run in own])
        macs = np.mean([run.result["macs_dense"] / run.result["macs"] for run in own])
        dead = np.mean([run.dead for run in own])
        yield (
            f"| {method} | {len(own)} | {accuracy.mean():.1f} | {sd} | {difference[0]} "
            f"| {difference[1]} | {ranks[method]:.1f} | {sparsity:.2f} | {macs:.2f}× fewer "
            f"| {dead:.1f} |"
        )


def _difference(gaps: Sequence[float]) -> list[str]:
    """`mean [low, high] verdict` of paired differences in points, and the detectable effect."""
    interval = t_interval(gaps)
    verdict = "undecided"
    if interval.low > 0 or interval.high < 0:
        verdict = "better" if interval.low > 0 else "worse"
    if len(gaps) < 2:
        return [f"{interval.estimate:+.1f} (one seed)", ""]
    sd = float(np.std(gaps, ddof=1))
    detectable = minimum_detectable_effect(sd, len(gaps))
    limits = f"[{interval.low:+.1f}, {interval.high:+.1f}]"
    return [f"{interval.estimate:+.1f} {limits} {verdict}", f"{detectable:.1f}"]


def trend(runs: Sequence[Upstream], first: str, second: str) -> Iterable[str]:
    """The difference by sparsity, and its slope over seeds."""
    found = {(run.method, run.sparsity, run.seed): run.accuracy for run in runs if run.sparsity}
    levels = sorted(
        {s for m, s, _ in found if m == first} & {s for m, s, _ in found if m == second}
    )
    seeds = sorted({seed for m, _, seed in found if m == first})
    yield f"| fewer by | {first} − {second}, points [95 %] | MDE |"
    yield "|---|---|---|"
    seeds = [x for x in seeds if all((m, s, x) in found for m in (first, second) for s in levels)]
    gaps = {s: [found[first, s, x] - found[second, s, x] for x in seeds] for s in levels}
    for level in levels:
        text, detectable = _difference(gaps[level])
        yield f"| {1 / (1 - level):.0f}× | {text} | {detectable} |"
    doublings = [math.log2(1 / (1 - level)) for level in levels]
    slopes = [np.polyfit(doublings, [gaps[s][i] for s in levels], 1)[0] for i in range(len(seeds))]
    text, detectable = _difference(slopes)
    yield f"| slope per doubling | {text} | {detectable} |"


def controls(name: str, runs: Sequence[Upstream], sparsity: float) -> dict[str, Any]:
    """The experiment of random controls: one arm per seed, one method per run of that seed."""
    path = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = [
        run for run in runs if run.sparsity == sparsity and not run.method.startswith("random")
    ]
    arms = []
    for seed in sorted({run.seed for run in wanted}):
        methods = [
            {
                "name": "random",
                "label": CONTROL + run.method,
                "options": {
                    "layers": {n: c["kept"] for n, c in run.result["summary"]["layers"].items()}
                },
            }
            for run in wanted
            if run.seed == seed
        ]
        prune = {"methods": methods, "sparsities": [sparsity], "seeds": [seed], "dense": False}
        arms.append({"name": f"seed-{seed}", "prune": prune})
    shared = {key: raw[key] for key in ("upstream", "recipe")}
    title = f"Random masks at the densities of {name}"
    return {"name": f"{name}-controls", "title": title, **shared, "arms": arms}


def floor(runs: Sequence[Upstream], control: Sequence[Upstream]) -> Iterable[str]:
    """Markdown: each method minus random pruning at its own densities, paired by seed."""
    random = {(run.method.removeprefix(CONTROL), run.sparsity, run.seed): run for run in control}
    yield "| method | n | accuracy, % | random, same densities | difference [95 %] | MDE |"
    yield "|---|---|---|---|---|---|"
    rows = []
    for method, sparsity in dict.fromkeys((run.method, run.sparsity) for run in runs):
        pairs = [
            (run.accuracy, random[method, sparsity, run.seed].accuracy)
            for run in runs
            if (run.method, run.sparsity) == (method, sparsity)
            and (method, sparsity, run.seed) in random
        ]
        if pairs:
            own, other = np.array(pairs).T
            text, detectable = _difference(list(own - other))
            row = f"| {method} | {len(pairs)} | {own.mean():.1f} | {other.mean():.1f} | {text} "
            rows.append((float((own - other).mean()), row + f"| {detectable} |"))
    yield from (row for _, row in sorted(rows, reverse=True))


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    commands = parser.add_subparsers(dest="command", required=True)
    of_table = commands.add_parser("table")
    of_table.add_argument("experiment")
    of_table.add_argument("--against", required=True)
    of_table.add_argument("--arms", nargs="+", help="put these arms into one table")
    of_trend = commands.add_parser("trend")
    of_trend.add_argument("experiment")
    of_trend.add_argument("first")
    of_trend.add_argument("second")
    of_controls = commands.add_parser("controls")
    of_controls.add_argument("experiment")
    of_controls.add_argument("--sparsity", type=float, required=True)
    of_floor = commands.add_parser("floor")
    of_floor.add_argument("experiment")
    of_floor.add_argument("controls")
    options = parser.parse_args()
    store = Store(options.runs)
    runs = finished(options.experiment, store)
    if options.command == "table":
        if options.arms:
            together = " + ".join(options.arms)
            runs = [replace(run, arm=together) for run in runs if run.arm in options.arms]
        print("\n".join(table(runs, options.against)))
    elif options.command == "trend":
        print("\n".join(trend(runs, options.first, options.second)))
    elif options.command == "controls":
        yaml.safe_dump(
            controls(options.experiment, runs, options.sparsity), sys.stdout, sort_keys=False
        )
    else:
        print("\n".join(floor(runs, finished(options.controls, store))))


if __name__ == "__main__":
    main()
