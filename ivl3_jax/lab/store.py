"""What was compiled is kept, so that no case is compiled twice: by its content, the package's and the compiler's."""

import dataclasses
import gzip
import hashlib
import json
import os
import zlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import ivl3_jax
from ivl3_jax.lab.case import Case
from ivl3_jax.lab.compile import Compiled, Memory, Shortage

# The rooms of the package on which a compiled step depends, and what of the lab does.
_ROOMS = ("sharding", "kernels", "layers", "models", "training")
_FILES = ("batch.py", "chips.py", "config.py", "lab/compile.py", "lab/topology.py")
_FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")  # variables from which the compiler takes options
# JAX's own; of these only what is set, so that what was kept before they counted is still found.
_EFFORTS = (
    "JAX_EXEC_TIME_OPTIMIZATION_EFFORT",
    "JAX_MEMORY_FITTING_EFFORT",
    "JAX_MEMORY_FITTING_LEVEL",
    "JAX_OPTIMIZATION_LEVEL",
)


class Store:
    """A directory of compiled steps: for each a JSON file of its facts and, compressed, its text."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def find(self, case: Case) -> Compiled | None:
        """What is kept of a case; None if nothing is, or not all of it, or it cannot be read."""
        facts, text = self._files(case)
        try:
            found = json.loads(facts.read_text(encoding="utf-8"))["compiled"]
            found["memory"] = found["memory"] and Memory(**found["memory"])
            found["shortage"] = found["shortage"] and Shortage(**found["shortage"])
            found["complaints"] = tuple(found["complaints"])
            kept = Compiled(**found, text="")
            if kept.memory is None and kept.shortage is not None:
                return kept  # the compiler gave up, and wrote no text
            scheduled = gzip.decompress(text.read_bytes()).decode()
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError):
            return None
        return dataclasses.replace(kept, text=scheduled) if scheduled else None

    def keep(self, case: Case, compiled: Compiled) -> Compiled:
        """Keeps it; the facts come last, so that what is there is whole."""
        self.directory.mkdir(parents=True, exist_ok=True)
        facts, text = self._files(case)
        if compiled.text:
            _replace(text, gzip.compress(compiled.text.encode(), 3))
        found = {name: value for name, value in dataclasses.asdict(compiled).items() if name != "text"}
        _replace(facts, json.dumps({"case": case.facts(), "compiled": found}, indent=1).encode())
        return compiled

    def _files(self, case: Case) -> tuple[Path, Path]:
        told = case.facts()
        told.pop("documents")  # only the walk of the schedule asks for them
        told["plan"].pop("name")
        told.pop("model")
        options = {name: os.environ.get(name, "") for name in _FLAGS}
        options |= {name: os.environ[name] for name in _EFFORTS if name in os.environ}
        made_by = _versions(), options, _source()
        key = hashlib.sha256(json.dumps([told, made_by], sort_keys=True).encode()).hexdigest()[:20]
        return self.directory / f"{key}.json", self.directory / f"{key}.hlo.gz"


def default_directory() -> Path:
    """Where compiled steps are kept if nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivl3_jax" / "lab"


def _replace(file: Path, content: bytes) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(file)


def _versions() -> list[str]:
    return [version(name) for name in ("jax", "libtpu", "flax", "optax")]


@cache
def _source() -> str:
    """A sum over the sources that make the step."""
    root = Path(ivl3_jax.__file__).parent
    files = [root / name for name in _FILES]
    for room in _ROOMS:
        files += sorted((root / room).rglob("*.py"))
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()
