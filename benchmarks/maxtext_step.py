"""Compiles MaxText's train step ahead of time, and keeps its module: run in its environment by `against_maxtext.py`.

Its arguments: files for the module and for facts of it, and MaxText's settings.
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

# What `ivl3_jax/libtpu.py` sets: the TPU's compiler without a TPU.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5p-8",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    HF_HUB_OFFLINE="1",
)


def main() -> None:
    module, facts = map(Path, sys.argv[1:3])
    import jax

    compile_lowered = jax.stages.Lowered.compile

    def keeping(self, *arguments, **options):
        before = time.perf_counter()
        compiled = compile_lowered(self, *arguments, **options)
        module.write_text(compiled.as_text())
        found = {
            "compile_seconds": round(time.perf_counter() - before, 1),
            "bytes": compiled.memory_analysis().peak_memory_in_bytes,
            "jax": jax.__version__,
        }
        facts.write_text(json.dumps(found))
        return compiled

    jax.stages.Lowered.compile = keeping
    from absl import app
    from maxtext.trainers.pre_train import train_compile

    base = Path(importlib.util.find_spec("maxtext").submodule_search_locations[0]) / "configs/base.yml"
    fixed = (
        "run_name=x base_output_directory=unused compile_topology_num_slices=1 enable_checkpointing=false "
        "dataset_type=synthetic attention=flash use_iota_embed=true"
    )
    app.run(train_compile.main, argv=["train_compile", str(base), *fixed.split(), *sys.argv[3:]])


if __name__ == "__main__":
    main()
