"""The studies of docs/studies.md, made by the laboratory: no TPU takes part (extra tpu; matplotlib).

    python benchmarks/studies.py [--only vision,long,best,scaling] [--jobs 2] [--cache FOLDER]

Each study is a list of cases, which are compiled for their slices, a minute or several each, and kept as by `ivl3 lab`.
Its table takes the place of the one in docs/studies.md, or is printed where the page has none, and its picture that of
docs/studies-NAME.png.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ivl3_jax.cli.main import set_platform_defaults

if TYPE_CHECKING:
    from ivl3_jax.lab.case import Case
    from ivl3_jax.lab.prediction import Prediction

DOCS = Path(__file__).parent.parent / "docs"
PARTS = {
    "products": "#4477aa",
    "kernels": "#66ccee",
    "other compute": "#ccbb44",
    "memory moves": "#aa3377",
    "exposed communication": "#ee6677",
}


@dataclass(frozen=True)
class Line:
    """A case of a study, and what tells it from the others."""

    label: str
    case: "Case"


def line(
    model: str,
    topology: str,
    plan: str,
    mesh: Mapping[str, int],
    *,
    tokens: int,
    tiles: int,
    remat: str | None = None,
    **fields,
) -> Line:
    """A row for each shard of rows.

    `remat`: of the decoder, a name in `lab.candidates.REMATS`; `fields`: of the plan, in place of its own.
    """
    from ivl3_jax.lab.candidates import REMATS
    from ivl3_jax.lab.case import Case, batch_of, fitted, model_of
    from ivl3_jax.lab.topology import Topology
    from ivl3_jax.sharding.plan import ShardingPlan

    name, config = model_of(model)
    slice_ = Topology.read(topology)
    found = replace(fitted(ShardingPlan.read(plan), slice_, mesh), **fields)
    if remat is not None:
        found = replace(found, name=f"{plan}, {remat}", remat={**found.remat, "decoder": REMATS[remat]})
    batch = batch_of(found, slice_, rows_per_chip=None, tokens=tokens, tiles=tiles)
    case = Case(name, config, found, slice_, batch)
    return Line(f"{name.rpartition('-')[2]} {plan}, {case.mesh}", case)


def vision() -> list[Line]:
    """The ViT spread over every device of a row's group, against one that is sharded as the decoder is."""
    lines = []
    for model, plan, mesh in (
        ("8b", "context", {"context": 8}),
        ("38b", "context", {"context": 8}),
        ("78b", "context", {"context": 8}),
        ("78b", "sequence", {"tensor": 8}),
    ):
        for name in (f"{plan}_coupled", plan):
            lines.append(line(model, "v5p:4x4x8", name, mesh, tokens=16384, tiles=48))
    return lines


def long() -> list[Line]:
    """Rows of 32,768 and 131,072 tokens, the sequence sharded over context against heads over tensor."""
    from ivl3_jax.sharding.context import Context

    lines = []
    for tokens, plans in (
        (32768, (("context", {"context": 4}), ("context", {"context": 8}), ("sequence", {"tensor": 4}))),
        (131072, (("context", {"context": 16}), ("context", {"context": 32}), ("sequence", {"tensor": 4}))),
    ):
        for plan, mesh in plans:
            found = line("8b", "v5p:4x4x4", plan, mesh, tokens=tokens, tiles=48, remat="attention")
            lines.append(Line(f"{tokens:,}: {found.label}", found.case))
    ring = line(
        "8b",
        "v5p:4x4x4",
        "context",
        {"context": 16},
        tokens=131072,
        tiles=48,
        remat="attention",
        context=Context("ring", "zigzag"),
    )
    return [*lines, Line(f"131,072: {ring.label}, by a ring", ring.case)]


def best() -> list[Line]:
    """The plan that a search ranks first, before anything is compiled, for each size and slice."""
    from ivl3_jax.cli.lab_search import SearchQuestion, cases
    from ivl3_jax.lab.candidates import ranked

    lines = []
    for topology in ("v5e:16x16", "v5p:4x4x8", "v6e:16x16"):
        for model in ("1b", "8b", "38b", "78b"):
            question = SearchQuestion(model, topology, tokens=8192, tiles=12)
            case, _ = ranked(cases(question), most=1)[0][0]
            # With the large VMEM a compile for v6e takes a quarter of an hour; without it a few minutes.
            plan = replace(case.plan, compiler={"v6e": {"xla_tpu_scoped_vmem_limit_kib": None}})
            lines.append(Line(f"{topology} {model}: {plan.name}, {case.mesh}", replace(case, plan=plan)))
    return lines


def scaling() -> list[Line]:
    """From 64 to 4,096 chips, a row a chip; 3,584 columns do not divide over more than 512."""
    lines = []
    for shape, meshes in (
        ("4x4x4", [{"fsdp": 64}]),
        ("4x8x8", [{"fsdp": 256}]),
        ("8x8x8", [{"fsdp": 512}, {"data": 8, "fsdp": 64}]),
        ("8x8x16", [{"data": 16, "fsdp": 64}]),
        ("16x16x16", [{"data": 64, "fsdp": 64}, {"data": 16, "fsdp": 256}]),
    ):
        for mesh in meshes:
            plan = "hybrid" if "data" in mesh else "fsdp"
            found = line("8b", f"v5p:{shape}", plan, mesh, tokens=8192, tiles=12, remat="attention")
            lines.append(Line(f"{found.case.topology.chips:,} chips: {found.case.mesh}", found.case))
    return lines


STUDIES: dict[str, Callable[[], list[Line]]] = {"vision": vision, "long": long, "best": best, "scaling": scaling}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of studies, with commas between")
    parser.add_argument("--jobs", type=int, default=1, help="compilers at a time; each takes a core and up to 4 GiB")
    parser.add_argument("--cache", type=Path, help="where compiled steps are kept; as for ivl3 lab")
    options = parser.parse_args()
    set_platform_defaults()
    from ivl3_jax.lab.search import search
    from ivl3_jax.lab.store import Store, default_directory

    store = Store(options.cache or default_directory())
    for name in options.only.split(",") if options.only else STUDIES:
        lines = STUDIES[name]()

        def tell(tried, number: int, count: int, name=name) -> None:
            took = "kept" if tried.known else f"{tried.seconds:.0f} s"
            print(f"{name} {number}/{count}  {tried.case.name}: {tried.failure or took}", flush=True)

        search([each.case for each in lines], store, jobs=options.jobs, tell=tell)
        write(name, lines, store)


def write(name: str, lines: Sequence[Line], store) -> None:
    """The study's table and picture, of what is kept."""
    from ivl3_jax.lab.prediction import predict

    found = []
    for each in lines:
        compiled = store.find(each.case)
        if compiled is not None:
            found.append((each.label, predict(each.case, compiled)))
    page = DOCS / "studies.md"
    text = page.read_text(encoding="utf-8")
    place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    changed, places = place.subn(lambda _: table(found), text, count=1)
    page.write_text(changed, encoding="utf-8")
    if not places:
        print(table(found))
    draw(found, DOCS / f"studies-{name}.png")


def table(found: Sequence[tuple[str, "Prediction"]]) -> str:
    lines = ["| | rows a chip | GiB of a chip | step | MFU | tokens/s a chip | waits for links |", "|---|" + "---|" * 6]
    for label, each in found:
        memory, timeline = each.compiled.memory, each.timeline
        size = "—" if memory is None else f"{memory.total / 2**30:.1f} of {each.case.topology.chip.hbm:g}"
        cells = [label, f"{each.case.rows:g}", size]
        if timeline is None or not each.fits:
            cells += ["does not fit", "", "", ""]
        else:
            waits = timeline.parts.get("exposed communication", 0.0) / timeline.seconds
            cells += [f"{timeline.seconds:.2f} s", f"{each.utilisation:.1%}", f"{each.rate:,.0f}", f"{waits:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(found: Sequence[tuple[str, "Prediction"]], file: Path) -> None:
    """Microseconds that a chip spends on a token, by what it spends them on."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    drawn = [(label, each) for label, each in found if each.fits and each.timeline is not None]
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.32 * len(drawn)), layout="constrained")
    for number, (_, each) in enumerate(drawn):
        left, unit = 0.0, 1e6 * each.case.topology.chips / each.case.tokens
        for part, colour in PARTS.items():
            width = each.timeline.parts.get(part, 0.0) * unit
            axes.barh(number, width, left=left, color=colour, label=part if number == 0 else None)
            left += width
        axes.text(left, number, f" {each.utilisation:.0%} MFU", va="center", fontsize=8)
    axes.set_yticks(range(len(drawn)), [label for label, _ in drawn], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("µs of one chip for a token, predicted")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
