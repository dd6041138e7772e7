"""The lab's prediction beside published TPU runs; no TPU takes part (extra tpu).

    python benchmarks/published_runs.py [--cache FOLDER] [--only 16B,32B] [--calibration FILE | --fit] [--json FILE]

Each run of `ivl3_jax/lab/published.py` is this project's decoder of that shape, slice, plan and remat: its step is
compiled ahead of time, and its time predicted from the text. The constants were fitted on the runs that are marked so;
the others are held out. `--fit` fits them again: of `vectors` and `kernels` those with the least squares of the fitted
runs' errors. A compile takes one to ten minutes; what is compiled is kept as by `ivl3 lab`.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from pathlib import Path

from ivl3_jax.cli.main import set_platform_defaults

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="where modules are kept, by default where `ivl3 lab` keeps them")
    parser.add_argument("--only", help="names of runs, with commas between")
    parser.add_argument("--calibration", type=Path, help="a YAML file of constants")
    parser.add_argument("--fit", action="store_true", help="fits constants, and takes them")
    parser.add_argument("--json", type=Path, help="where the table goes as JSON")
    options = parser.parse_args()
    set_platform_defaults()

    from ivl3_jax.lab.calibration import Calibration
    from ivl3_jax.lab.published import RUNS
    from ivl3_jax.lab.store import Store, default_directory

    store = Store(options.cache or default_directory())
    calibration = Calibration.read(options.calibration) if options.calibration else Calibration()
    wanted = options.only.split(",") if options.only else [run.name for run in RUNS]
    runs = [Walked(run, store) for run in RUNS if run.name in wanted]
    if options.fit:
        calibration = fitted([run for run in runs if run.run.fitted], calibration)
        print(calibration)
    rows = [row(run, calibration) for run in runs]
    print(f"{'run':10} {'slice':11} {'published':>9} {'predicted':>9} {'error':>7}  {'':8}  compute, communication")
    for each in rows:
        parts = {name: round(seconds, 2) for name, seconds in each["parts"].items()}
        print(
            f"{each['run']:10} {each['topology']:11} "
            f"{each['published_seconds']:7.2f} s {each['predicted_seconds']:7.2f} s "
            f"{100 * each['error']:+6.1f}%  {'fitted' if each['fitted'] else 'held out':8}  {parts}"
        )
    for name in ("fitted", "held out"):
        errors = [abs(each["error"]) for each in rows if each["fitted"] == (name == "fitted")]
        if errors:
            mean, worst = 100 * statistics.mean(errors), 100 * max(errors)
            print(f"{name}: mean absolute error {mean:.1f}%, worst {worst:.1f}%")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def compiled(case, store):
    """What a case was compiled to, kept or compiled now.

    Raises:
        ValueError: it cannot be compiled, or does not fit.
    """
    from ivl3_jax.lab.prediction import compile_case

    found = store.find(case)
    if found is None:
        print(f"compiling {case.name} ...", flush=True)
        found = store.keep(case, compile_case(case))
    if not found.text:
        raise ValueError(f"{case.name}: {found.shortage.message}")
    return found


class Walked:
    """A run, what its step was compiled to, and a way through that by any constants."""

    def __init__(self, run, store) -> None:
        from ivl3_jax.lab.hlo import Module

        self.run, self.compiled = run, compiled(run.case, store)
        self.topology = run.case.topology
        self.module, self.placed = Module.read(self.compiled.text), self.topology.make_mesh(run.plan)

    def predicted(self, calibration):
        from ivl3_jax.lab.kernel_time import kernel_seconds
        from ivl3_jax.lab.timeline import walk

        kernels = kernel_seconds(self.topology.chip.name, 1, calibration)
        return walk(self.module, self.placed, kernels, calibration)

    def error(self, calibration) -> float:
        return self.predicted(calibration).seconds / self.run.seconds - 1


def fitted(runs: list[Walked], calibration):
    """The constants with the least squares of errors, on a grid of steps of 0.05."""
    grid = [n / 20 for n in range(8, 21)]
    tried = [
        dataclasses.replace(calibration, vectors=vectors, kernels=kernels)
        for vectors, kernels in itertools.product(grid, grid)
    ]
    return min(tried, key=lambda each: sum(run.error(each) ** 2 for run in runs))


def row(each: Walked, calibration) -> dict:
    """What is published of a run, what is predicted, and what compiling took."""
    run, compiled, found = each.run, each.compiled, each.predicted(calibration)
    return {
        "run": run.name,
        "topology": run.topology,
        "fitted": run.fitted,
        "source": run.source,
        "published_seconds": run.seconds,
        "predicted_seconds": found.seconds,
        "error": found.seconds / run.seconds - 1,
        "published_utilisation": run.utilisation,
        "predicted_utilisation": run.utilisation * run.seconds / found.seconds,
        "parts": found.parts,
        "busy": found.busy,
        "warnings": found.warnings,
        "compile_seconds": round(compiled.compile_seconds, 1),
        "gib": round(compiled.memory.total / GIB, 2),
        "shortage": compiled.shortage.message if compiled.shortage else None,
        "complaints": compiled.complaints,
    }


if __name__ == "__main__":
    main()
