"""This project's step beside MaxText's own: compiled for the same slices, judged by the same prediction (extra tpu).

    python benchmarks/against_maxtext.py --python ENVIRONMENT/bin/python [--texts FOLDER] [--only 16B,64B] [--our-flags]

Each run of `ivl3_jax/lab/published.py`: decoder, slice, tokens and remat are the same, and each side has the compiler
flags that it gives a user: ours `sharding/compiler.py`, MaxText's those of its documents for that run, or ours for both
with `--our-flags`. MaxText compiles in an environment of its own (Python 3.12, `maxtext[tpu]`), by its
`train_compile`. Its attention kernel is timed as ours was when its cost was modelled: by the compiler's schedule, for
the blocks that MaxText takes. No TPU takes part. A compile takes one to ten minutes, the 8B's longer; texts are kept in
FOLDER.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from published_runs import compiled

from ivl3_jax.cli.main import set_platform_defaults

GIB = 2**30

_OVERLAP = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true --xla_tpu_data_parallel_opt_different_sized_ops=true "
    "--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"
)
_FUSED = (
    "--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_multiple_steps=true "
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
)
_V5P = (
    "--xla_tpu_megacore_fusion_allow_ags=false --xla_enable_async_collective_permute=true "
    "--xla_tpu_enable_ag_backward_pipelining=true"
)
_V6E = (
    "--xla_tpu_scoped_vmem_limit_kib=98304 --xla_tpu_use_minor_sharding_for_major_trivial_input=true "
    "--xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1 --xla_tpu_assign_all_reduce_scatter_layout=true"
)
_LLAMA_8B = (
    "compile_topology=v6e-256 per_device_batch_size=4 model_name=llama3.1-8b max_target_length=8192 "
    "remat_policy=custom decoder_layer_input=offload query_proj=offload key_proj=offload value_proj=offload "
    "out_proj=offload sa_block_q=2048 sa_block_kv=2048 sa_block_kv_compute=2048 sa_block_q_dkv=2048 "
    "sa_block_kv_dkv=2048 sa_block_kv_dkv_compute=2048 sa_use_fused_bwd_kernel=true"
)
# MaxText's settings of each run, and its flags: of its README for that chip.
SETTINGS = {
    "16B": (
        "compile_topology=v5e-256 per_device_batch_size=6 remat_policy=full global_parameter_scale=16 "
        "max_target_length=2048",
        f"{_FUSED} {_OVERLAP}",
    ),
    "64B": (
        "compile_topology=v5e-256 per_device_batch_size=2 remat_policy=full global_parameter_scale=64 "
        "max_target_length=2048",
        f"{_FUSED} {_OVERLAP}",
    ),
    "32B on v5e": (
        "compile_topology=v5e-256 per_device_batch_size=4 remat_policy=full global_parameter_scale=32 "
        "max_target_length=2048",
        f"{_FUSED} {_OVERLAP}",
    ),
    "32B": (
        "compile_topology=v5p-128 per_device_batch_size=6 remat_policy=minimal global_parameter_scale=32 "
        "ici_fsdp_parallelism=-1 ici_tensor_parallelism=4 max_target_length=2048",
        f"{_OVERLAP} {_V5P}",
    ),
    "128B": (
        "compile_topology=v5p-256 per_device_batch_size=1 remat_policy=minimal global_parameter_scale=128 "
        "ici_fsdp_parallelism=-1 ici_tensor_parallelism=8 max_target_length=2048",
        f"{_OVERLAP} {_V5P}",
    ),
    "70B": (
        "compile_topology=v5p-128 per_device_batch_size=2 remat_policy=save_dot_except_mlpwi model_name=llama2-70b "
        "max_target_length=4096",
        f"{_OVERLAP} {_V5P}",
    ),
    "8B": (_LLAMA_8B, f"{_V6E} {_OVERLAP}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="interpreter of MaxText's environment")
    parser.add_argument("--texts", type=Path, default=Path(".cache/maxtext"), help="where modules are kept")
    parser.add_argument("--only", help="names of runs, with commas between")
    parser.add_argument("--our-flags", action="store_true", help="gives MaxText the flags of this project too")
    parser.add_argument("--json", type=Path, help="where the table goes as JSON")
    options = parser.parse_args()
    set_platform_defaults()
    options.texts.mkdir(parents=True, exist_ok=True)

    from ivl3_jax.lab.published import RUNS

    wanted = options.only.split(",") if options.only else list(SETTINGS)
    rows = []
    print(f"{'run':10} {'ours':>8} {'MaxText':>8} {'ratio':>6}   {'ours':>10} {'MaxText':>10}   parts: ours; MaxText's")
    for run in RUNS:
        if run.name in wanted:
            rows.append(compared(run, options))
            each = rows[-1]
            parts = "; ".join(
                str({name: round(seconds, 2) for name, seconds in each[side]["parts"].items()}) for side in SIDES
            )
            ours, theirs = (each[side] for side in SIDES)
            print(
                f"{run.name:10} {ours['seconds']:6.2f} s {theirs['seconds']:6.2f} s {each['ratio']:6.3f}   "
                f"{ours['gib']:6.1f} GiB {theirs['gib']:6.1f} GiB   {parts}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


SIDES = ("ours", "maxtext")


def compared(run, options) -> dict:
    """Seconds and GiB of both sides' steps."""
    from ivl3_jax.lab.calibration import Calibration
    from ivl3_jax.lab.hlo import Module
    from ivl3_jax.lab.kernel_time import kernel_seconds
    from ivl3_jax.lab.store import Store
    from ivl3_jax.lab.timeline import walk
    from ivl3_jax.lab.topology import Topology

    topology, calibration = Topology.read(run.topology), Calibration()
    plan = dataclasses.replace(run.plan, compiler={})  # with the flags of today, not those of the published run
    placed = topology.make_mesh(plan)
    kernels = {
        "ours": kernel_seconds(topology.chip.name, 1, calibration),
        "maxtext": splash_seconds(run, topology.chip, options.texts),
    }
    ours = compiled(dataclasses.replace(run.case, plan=plan), Store(options.texts))
    texts = {
        "ours": (ours.text, {"compile_seconds": ours.compile_seconds, "bytes": ours.memory.total}),
        "maxtext": their_module(run, plan, topology.chip.name, options),
    }
    found: dict = {"run": run.name}
    for side in SIDES:
        text, facts = texts[side]
        timeline = walk(Module.read(text), placed, kernels[side], calibration)
        found[side] = {
            "seconds": timeline.seconds,
            "gib": facts["bytes"] / GIB,
            "parts": timeline.parts,
            "warnings": timeline.warnings,
            **facts,
        }
    return {**found, "ratio": found["ours"]["seconds"] / found["maxtext"]["seconds"]}


def their_module(run, plan, chip: str, options) -> tuple[str, dict]:
    """What MaxText compiles, in a process of its environment."""
    from ivl3_jax.sharding.compiler import options_of

    settings, flags = SETTINGS[run.name]
    if options.our_flags:
        flags = " ".join(f"--{name}={str(value).lower()}" for name, value in options_of(chip, plan).items())
    step = Path(__file__).with_name("maxtext_step.py")
    # Not this process's libtpu, which jax has named there, nor its packages.
    others = {name: value for name, value in os.environ.items() if name not in ("TPU_LIBRARY_PATH", "PYTHONPATH")}
    given = [others.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    made_by = "\n".join((settings, flags, *given, step.read_text(), versions(options.python)))
    stem = options.texts / f"{run.name.replace(' ', '-')}-maxtext-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"
    text, facts, log = (stem.with_name(stem.name + end) for end in (".hlo", ".json", ".log"))
    if not facts.is_file():
        print(f"{run.name}: MaxText compiles for {run.topology} ...", flush=True)
        command = [options.python, step, text, facts, *settings.split(), f"compile_xla_flags={flags}"]
        with log.open("w") as written:
            words = [str(word) for word in command]
            ran = subprocess.run(words, env=others, stdout=written, stderr=subprocess.STDOUT)
        if not facts.is_file():
            raise ValueError(f"{run.name}: MaxText ended with {ran.returncode} before its step was compiled, see {log}")
    return text.read_text(), json.loads(facts.read_text())


@cache
def versions(python: Path) -> str:
    """Of MaxText and what compiles its step, in its environment."""
    asked = "from importlib.metadata import version; print(*map(version, ('maxtext', 'jax', 'libtpu')))"
    ran = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True)
    if ran.returncode:
        raise ValueError(f"{python} is no interpreter of an environment with maxtext[tpu]: {ran.stderr[-300:]}")
    return ran.stdout


def splash_seconds(run, chip, texts: Path):
    """The time of one call of splash attention by the schedule, as `walk` wants it."""
    from ivl3_jax.bench.packed import splash_kernels
    from ivl3_jax.bench.problems import Attention

    d, tensor = run.decoder, run.mesh.get("tensor", 1)
    heads, kv_heads = d.heads // tensor, d.kv_heads // tensor
    large = "sa_block_q=2048" in SETTINGS[run.name][0]
    shape = f"{chip.name}-{heads}-{kv_heads}-{run.tokens}{'-large' * large}"
    kept = texts / f"splash-{shape}-jax{version('jax')}-libtpu{version('libtpu')}.json"
    if not kept.is_file():
        problem = Attention("", 1, run.tokens, heads, kv_heads, d.head_dim, (run.tokens,))
        block = 2048 if large else 512  # MaxText's default, with which the backward pass is two kernels
        found = splash_kernels(problem, chip.name, (block, block, block), fused=large)
        kept.write_text(json.dumps({kernel.name: kernel.milliseconds / 1e3 for kernel in found}))
    of_row = json.loads(kept.read_text())

    def seconds(name, operands, results) -> float | None:
        del operands
        return next((results[0][1][0] * of_row[known] for known in of_row if known in name), None)

    return seconds


if __name__ == "__main__":
    main()
