"""Files are short, portable, and linked to each other correctly."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 500
# Directories of somebody's machine, and hosts that serve packages: neither belongs in a file that others use.
MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|mnt|opt|root|Users|work)/\w|pythonhosted\.org|pypi\.org/simple|download\.pytorch\.org"
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OURS = {".cfg", ".in", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}


def our_files(root: Path) -> list[Path]:
    """The text files under version control or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [root / name for name in listed.stdout.splitlines()]
    return [file for file in files if file.is_file() and file.suffix in OURS]


def too_long(files: list[Path]) -> Iterator[str]:
    for file in files:
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if file.suffix == ".py" and lines > LONGEST:
            yield f"{file.name} has {lines} lines, at most {LONGEST}: split it by subject"


def machine_bound(files: list[Path]) -> Iterator[str]:
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE.search(line):
                yield f"{file.name}:{number}: {line.strip()}"


def broken_links(files: list[Path]) -> Iterator[str]:
    for file in files:
        for target in LINK.findall(file.read_text(encoding="utf-8")):
            path = target.partition("#")[0]
            if path and "://" not in target and not target.startswith("mailto:") and not (file.parent / path).exists():
                yield f"{file.name}: {target}"


def test_files_can_be_read_in_one_sitting():
    assert not list(too_long(our_files(ROOT)))


def test_a_planted_long_file_is_found(tmp_path):
    for lines in (LONGEST, LONGEST + 1):
        (tmp_path / f"{lines}.py").write_text("x = 1\n" * lines)
    assert [message.split()[0] for message in too_long(sorted(tmp_path.iterdir()))] == ["501.py"]


def test_no_file_is_bound_to_a_machine():
    assert not list(machine_bound(our_files(ROOT)))


def test_a_planted_machine_path_is_found(tmp_path):
    (tmp_path / "a.md").write_text("\n".join(["see /home" + "/me/data", "see https://a.org/home/me", "/dev/accel0"]))
    assert len(list(machine_bound([tmp_path / "a.md"]))) == 1


def test_links_lead_somewhere():
    assert not list(broken_links([file for file in our_files(ROOT) if file.suffix == ".md"]))


def test_a_planted_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text("[here](a.md#top) [gone](b.md) [far](https://a.org/b.md)")
    assert list(broken_links([tmp_path / "a.md"])) == ["a.md: b.md"]
