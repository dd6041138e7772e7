"""The rooms import downwards only, and foreign libraries stay in the rooms made for them."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL_LIBRARIES = {"flax", "jax", "jaxlib", "optax", "orbax"}
REFERENCE = {"torch", "torchvision", "transformers"}
# What a plain `import ivl3_jax` and every worker of the data engine may load.
WITHOUT_JAX = (
    "__init__.py",
    "batch.py",
    "config.py",
    "config_fields.py",
    "hf_config.py",
    "original_config.py",
    "data/",
    "cli/__init__.py",
    "cli/main.py",
    "cli/mistakes.py",
)


def lint_imports(root: Path) -> subprocess.CompletedProcess:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo", "--config", "pyproject.toml"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )


def foreign_imports(root: Path) -> Iterator[str]:
    """`file: library` for every import of a library in a room that must do without it."""
    for path in modules(root):
        name = path.relative_to(root / "ivl3_jax").as_posix()
        banned = set() if name.startswith("conversion/parity") else set(REFERENCE)
        banned |= MODEL_LIBRARIES if name.startswith(WITHOUT_JAX) else set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            yield from (f"{name}: {module}" for module in names if module.partition(".")[0] in banned)


def modules(root: Path) -> list[Path]:
    """Every module of the package, also those behind its links, which rglob does not follow."""
    tree = os.walk(root / "ivl3_jax", followlinks=True)
    return sorted(Path(folder) / file for folder, _, files in tree for file in files if file.endswith(".py"))


def copy_package(to: Path) -> None:
    shutil.copytree(ROOT / "ivl3_jax", to / "ivl3_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)


def plant(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_rooms_import_downwards():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_planted_upward_import_is_found(tmp_path):
    copy_package(tmp_path)
    assert lint_imports(tmp_path).returncode == 0
    plant(tmp_path / "ivl3_jax/config.py", "import ivl3_jax.cli.main")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "ivl3_jax.config is not allowed to import ivl3_jax.cli" in done.stdout


def test_a_planted_import_behind_a_link_is_found(tmp_path):
    copy_package(tmp_path)
    plant(tmp_path / "ivl3_jax/conversion/__init__.py", "import ivl3_jax.cli.main")
    assert "ivl3_jax.conversion is not allowed to import ivl3_jax.cli" in lint_imports(tmp_path).stdout


def test_a_new_room_must_take_its_place(tmp_path):
    copy_package(tmp_path)
    (tmp_path / "ivl3_jax/attic.py").write_text('"""Unplaced."""\n')
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "attic" in done.stdout


def test_foreign_libraries_stay_in_their_rooms():
    assert not list(foreign_imports(ROOT))


def test_a_planted_foreign_import_is_found(tmp_path):
    copy_package(tmp_path)
    before = set(foreign_imports(tmp_path))
    plant(tmp_path / "ivl3_jax/batch.py", "import jax.numpy as jnp")
    plant(tmp_path / "ivl3_jax/conversion/__init__.py", "from torch import nn")
    assert set(foreign_imports(tmp_path)) - before == {"batch.py: jax.numpy", "conversion/__init__.py: torch"}


def test_every_room_is_a_package():
    """Without an __init__.py a directory would be left out of wheels."""
    rooms = {path.parent for path in modules(ROOT)}
    assert not [str(room.relative_to(ROOT)) for room in rooms if not (room / "__init__.py").exists()]


def test_importing_the_package_imports_no_jax():
    code = "import ivl3_jax, sys; assert ivl3_jax.__version__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
