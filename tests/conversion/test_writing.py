"""Writing a checkpoint: interrupted and resumed, marked while it is incomplete, summed, and told in a card."""

import hashlib
import os
import shutil
import subprocess

import pytest

import ivl3_jax
from ivl3_jax.cli.main import main
from ivl3_jax.conversion import shards, unfinished, writer
from ivl3_jax.conversion.card import add_report
from ivl3_jax.conversion.checksums import sha256
from ivl3_jax.conversion.comparison import Report
from ivl3_jax.conversion.convert import convert
from ivl3_jax.conversion.writer import write_params
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
    damaged = tmp_path / "out" / first[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with monkeypatch.context() as patch:
        second = failing_after(patch, 1000)
        seen = []
        convert(source, tmp_path / "out", **SHARDS, report=lambda *what: seen.append(what))
    names = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert second == [first[1], *names[3:]]  # what was damaged, and what was not reached
    assert [phase for phase, _, _ in seen[:3]] == ["checking"] * 3  # the files of the first attempt
    assert {phase for phase, _, _ in seen[3:]} == {"writing"}
    assert seen[-1][1] == seen[-1][2]
    assert seen[3][1] > 60_000  # they count as done
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


@pytest.mark.parametrize("when", [0, 1, 2])
def test_interrupted_while_resuming(source, tmp_path, monkeypatch, when):
    with monkeypatch.context() as patch:
        failing_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", **SHARDS)
    with monkeypatch.context() as patch:
        hashed = []

        def interrupted(file):
            if len(hashed) == when:
                raise KeyboardInterrupt
            hashed.append(file)
            return sha256(file)

        patch.setattr(unfinished, "sha256", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", **SHARDS)
    written = failing_after(monkeypatch, 1000)
    convert(source, tmp_path / "out", **SHARDS)
    assert len(written) == len(list((tmp_path / "out").glob("*.safetensors"))) - 3
    assert not (tmp_path / "out/unfinished.json").exists()


def test_interrupted_at_the_end(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_checksums", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, tmp_path / "out", **SHARDS)
    assert (tmp_path / "out/unfinished.json").exists()
    written = failing_after(monkeypatch, 0)  # nothing is left to be written
    convert(source, tmp_path / "out", **SHARDS)
    assert written == []
    assert ivl3_jax.load(tmp_path / "out").parameter_count > 0


def test_an_unfinished_directory_says_so(source, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing_after(patch, 2)
        assert main(["convert", str(source), str(tmp_path / "out"), "--max_shard_gb", "6e-5"]) == 130
    assert "the same command continues after the last complete file" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"out is unfinished: writing it was interrupted; repeat the command that wrote"
    ):
        ivl3_jax.load(tmp_path / "out")
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "out/folder").mkdir()
    assert main(["convert", str(source), str(tmp_path / "out"), "--max_shard_gb", "6e-5"]) == 0
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert main(["convert", str(source), str(tmp_path / "third"), "--max_shard_gb", "0"]) == 2


def test_another_source_leaves_nothing_of_the_first(source, tmp_path, monkeypatch):
    (source / "vocab.json").write_text("{}")
    with monkeypatch.context() as patch:
        failing_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", **SHARDS)
    assert (tmp_path / "out/vocab.json").exists()
    (source / "vocab.json").unlink()
    convert(source, tmp_path / "out", layout="hf")
    assert not (tmp_path / "out/vocab.json").exists()
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


def test_nothing_stays_of_what_cannot_be_resumed(source, tmp_path, monkeypatch):
    model = ivl3_jax.load(source)
    (tmp_path / "empty").mkdir()
    for name, count in (("out", 0), ("out", 1), ("empty", 0)):
        with monkeypatch.context() as patch:
            failing_after(patch, count)
            with pytest.raises(KeyboardInterrupt):
                write_params(model.params, model.config, tmp_path / name, **SHARDS)
    assert {file.name for file in tmp_path.iterdir()} == {"in", "empty"}
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("spoiled", ["config", "tokenizer", "sums"])
def test_refused_before_anything_is_written(source, tmp_path, monkeypatch, spoiled):
    if spoiled == "config":
        monkeypatch.setattr(writer, "to_hf", lambda *_: 1 / 0)
    elif spoiled == "tokenizer":
        (source / "tokenizer.json").write_text("{}")
    else:
        (source / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    written = failing_after(monkeypatch, 1000)
    with pytest.raises((ZeroDivisionError, ValueError)):
        convert(source, tmp_path / "out", **SHARDS)
    assert written == []
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_places_that_are_taken(source, tmp_path, monkeypatch):
    with (
        unfinished.unfinished(tmp_path / "busy", None, ()),
        pytest.raises(FileExistsError, match="another process is wri"),
    ):
        convert(source, tmp_path / "busy", **SHARDS)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/unfinished.json").write_text("{")
    with pytest.raises(
        FileExistsError, match="unfinished.json cannot be read, so what is there cannot be gone on from"
    ):
        convert(source, tmp_path / "broken", **SHARDS)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file"):
        convert(source, tmp_path / "file", **SHARDS)
    for name in ("link", "dangling"):
        (tmp_path / name).symlink_to(tmp_path / f"{name}-target")
    (tmp_path / "link-target").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (tmp_path / "link", tmp_path / "dangling", "."):
        convert(source, place, layout="hf")
        assert ivl3_jax.load(place).parameter_count > 0


def test_no_room(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
        with pytest.raises(OSError, match=r"out: \d+ MB are to be written, but 0 are free"):
            convert(source, tmp_path / "out", **SHARDS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            convert(source, tmp_path / "out", **SHARDS)


def test_a_full_disk_names_the_file(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "header", full)
    with pytest.raises(OSError, match=r"out/model-00001-of-\d+.safetensors"):
        convert(source, tmp_path / "out", **SHARDS)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_values_beyond_a_dtype_are_refused(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    tensors["lm_head.weight"] *= 1e6
    source = write_checkpoint(tmp_path / "in", config, tensors)
    with pytest.raises(
        ValueError, match="tensor lm_head.weight has values that are not finite in float16, whose largest"
    ):
        convert(source, tmp_path / "out", layout="hf", dtype="float16")
    convert(source, tmp_path / "out", layout="hf", dtype="bfloat16")


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
    sums = (tmp_path / "out/SHA256SUMS").read_text()
    (tmp_path / "out/SHA256SUMS").write_text("\ufeff" + sums.upper().replace("  MODEL", "  ./model").lower())
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 1
    assert f"{shard} is not the file that SHA256SUMS lists" in capsys.readouterr().err
    (tmp_path / "out/SHA256SUMS").write_text("\n".join(line for line in sums.splitlines() if shard.name not in line))
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 1
    assert f"SHA256SUMS does not list {shard.name}; complete it, or remove it" in capsys.readouterr().err
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
    for title in ("hf as it was", "hf compared"):
        add_report(tmp_path / "hf", Report(title, {"with": "itself"}, []), "with another")
    add_report(tmp_path / "hf", Report("its processor", {}, []), "processor")
    said = (tmp_path / "hf/README.md").read_text()
    assert "## hf compared\n\n- with: itself\n" in said
    assert "## its processor" in said
    assert "There is no report yet" not in said
    assert "hf as it was" not in said
    convert(tmp_path / "hf", tmp_path / "original", layout="original")
    second = (tmp_path / "original/README.md").read_text()
    assert second.count("## Provenance") == second.count("## Parity") == 1
    assert "Weights from: `hf`, in transformers'" in second
    assert "hf compared" not in second  # it was said of other files
    assert "its processor" not in second
    assert "There is no report yet" in second
    ivl3_jax.save(ivl3_jax.load(source), tmp_path / "saved")
    assert "- Weights from: a model in memory\n" in (tmp_path / "saved/README.md").read_text()


def test_sums_are_those_of_the_files(source, tmp_path):
    convert(source, tmp_path / "out", layout="original")
    line = (tmp_path / "out/SHA256SUMS").read_text().splitlines()[-1]
    digest = hashlib.sha256((tmp_path / "out/model.safetensors").read_bytes()).hexdigest()
    assert line == f"{digest}  model.safetensors"
