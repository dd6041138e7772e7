"""Writing a checkpoint: interrupted and resumed, marked while it is incomplete, summed, and told in a card."""

import fcntl
import hashlib
import os
import shutil
import subprocess

import pytest

import ivl3_jax
from ivl3_jax.cli.main import main
from ivl3_jax.conversion import unfinished, writer
from ivl3_jax.conversion.card import add_report
from ivl3_jax.conversion.comparison import Report
from ivl3_jax.conversion.convert import convert
from tests.conversion.checkpoints import random_tensors, small_config, write_checkpoint

SHARDS = {"layout": "hf", "max_shard_bytes": 60_000}


@pytest.fixture
def source(tmp_path):
    config = small_config()
    return write_checkpoint(tmp_path / "in", config, random_tensors(config, layout="original"), "original")


def content(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def failing_after(monkeypatch, count):
    """Makes the writing of shards fail after that many."""
    written = []

    def write(file, *arguments):
        if len(written) == count:
            file.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(file.name)
        return real(file, *arguments)

    real = writer.write_shard
    monkeypatch.setattr(writer, "write_shard", write)
    return written


def test_resumed_after_the_last_complete_file(source, tmp_path, monkeypatch):
    convert(source, tmp_path / "whole", **SHARDS)
    with monkeypatch.context() as patch:
        first = failing_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", **SHARDS)
    assert not (tmp_path / "out").exists()
    damaged = tmp_path / "out.unfinished" / first[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with monkeypatch.context() as patch:
        second = failing_after(patch, 1000)
        seen = []
        convert(source, tmp_path / "out", **SHARDS, report=lambda *what: seen.append(what))
    names = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert second == [first[1], *names[3:]]  # what was damaged, and what was not reached
    assert {phase for phase, _, _ in seen} == {"writing"}
    assert seen[-1][1] == seen[-1][2]
    assert seen[0][1] > 60_000  # the files of the first attempt count as done
    assert not (tmp_path / "out.unfinished").exists()
    whole = content(tmp_path / "whole")
    whole["README.md"] = whole["README.md"].replace(b"# whole", b"# out")
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("change", ["options", "source"])
def test_another_attempt_starts_over(source, tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        failing_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", **SHARDS)
    options = SHARDS | ({"dtype": "float16"} if change == "options" else {})
    if change == "source":
        os.utime(source / "model.safetensors", ns=(1, 1))
    written = failing_after(monkeypatch, 1000)
    convert(source, tmp_path / "out", **options)
    assert len(written) == len(list((tmp_path / "out").glob("*.safetensors")))


def test_an_unfinished_directory_says_so(source, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", **SHARDS)
        assert main(["convert", str(source), str(tmp_path / "other"), "--max_shard_gb", "6e-5"]) == 130
    assert "the same command continues after the last complete file" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"out.unfinished is unfinished: writing it was interrupted; repeat the comma"):
        ivl3_jax.load(tmp_path / "out.unfinished")
    assert main(["convert", str(source), str(tmp_path / "other"), "--max_shard_gb", "6e-5"]) == 0
    assert main(["convert", str(source), str(tmp_path / "third"), "--max_shard_gb", "0"]) == 2


def test_nothing_stays_of_what_cannot_be_resumed(source, tmp_path, monkeypatch):
    model = ivl3_jax.load(source)
    with monkeypatch.context() as patch:
        failing_after(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            ivl3_jax.save(model, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]
    monkeypatch.setattr(writer, "to_hf", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ivl3_jax.save(model, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_places_that_are_taken(source, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished/thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is in the way, and is no unfinished checkpoint"):
        convert(source, tmp_path / "out", **SHARDS)
    assert (tmp_path / "out.unfinished/thesis.txt").read_text() == "mine"
    with unfinished.unfinished(tmp_path / "busy", None):
        descriptor = os.open(tmp_path / "busy.unfinished", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        with pytest.raises(FileExistsError, match="another process is writing there"):
            convert(source, tmp_path / "busy", **SHARDS)


def test_no_room(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(OSError, match=r"out: 0.00 GB are to be written, but 0.00 are free"):
        convert(source, tmp_path / "out", **SHARDS)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_checksums(source, tmp_path, capsys):
    convert(source, tmp_path / "out", **SHARDS)
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, text=True)
    assert check.returncode == 0
    assert check.stdout.count("OK") == len(list((tmp_path / "out").iterdir())) - 2  # not the card, nor the list itself
    shard = tmp_path / "out/model-00002-of-00003.safetensors"
    shard = shard if shard.exists() else sorted((tmp_path / "out").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 1
    assert f"{shard} is not the file that SHA256SUMS lists" in capsys.readouterr().err
    (tmp_path / "out/SHA256SUMS").write_text("nonsense\n")
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 1
    assert "SHA256SUMS:1: 'nonsense' is not a SHA-256" in capsys.readouterr().err


def test_the_card(source, tmp_path):
    (source / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n\nIts story.\n")
    convert(source, tmp_path / "hf", layout="hf", dtype="bfloat16")
    card = (tmp_path / "hf/README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n\n# A model\n\nIts story.\n\n<!-- ivl3_jax provenance -->\n")
    assert "- Weights from: `in`, in the authors' original layout\n" in card
    assert " in bfloat16\n" in card
    assert "There is no report yet" in card
    add_report(tmp_path / "hf", Report("hf compared", {"with": "itself"}, []))
    convert(tmp_path / "hf", tmp_path / "original", layout="original")
    second = (tmp_path / "original/README.md").read_text()
    assert second.count("## Provenance") == second.count("## Parity") == 1
    assert "## hf compared\n\n- with: itself\n" in (tmp_path / "hf/README.md").read_text()
    assert "Weights from: `hf`, in transformers'" in second
    assert "hf compared" not in second  # it was said of other files
    ivl3_jax.save(ivl3_jax.load(source), tmp_path / "saved")
    assert "- Weights from: a model in memory\n" in (tmp_path / "saved/README.md").read_text()


def test_sums_are_those_of_the_files(source, tmp_path):
    convert(source, tmp_path / "out", layout="original")
    line = (tmp_path / "out/SHA256SUMS").read_text().splitlines()[-1]
    digest = hashlib.sha256((tmp_path / "out/model.safetensors").read_bytes()).hexdigest()
    assert line == f"{digest}  model.safetensors"
