"""Shards: the samples that went in come out, from any thread and process; interruption, damage and bad samples."""

import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ivl3_jax.data import shard_writer
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.meta import open_source
from ivl3_jax.data.records import Pair, Stored
from ivl3_jax.data.shard_writer import write_shards
from ivl3_jax.data.shards import FILE, Manifest, ShardSource
from ivl3_jax.data.sources import SourceSpec
from tests.data.pictures import picture

array_record_module = pytest.importorskip("array_record.python.array_record_module")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COUNT = 30
TALK = [{"from": "human", "value": "<image>\nWhat? é"}, {"from": "gpt", "value": "7"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images 0.jpg ..., a video, and annotations: conversations, preference pairs, and conversations as Parquet."""
    root = tmp_path_factory.mktemp("root")
    for n in range(6):
        picture(40 + n, 30, n).save(root / f"{n}.jpg")
    (root / "a.mp4").write_bytes(b"not opened here")
    kinds = [
        lambda n: {"id": n, "image": f"{n % 6}.jpg", "conversations": TALK},
        lambda n: {"image": [f"{n % 6}.jpg", f"./{(n + 1) % 6}.jpg"], "conversations": TALK},
        lambda n: {"conversations": [{"from": "gpt", "value": f"\u4e66 {n}"}]},
        lambda n: {"video": "a.mp4", "clip": [0, n + 1], "conversations": TALK},
        lambda n: {"image": f"{n % 6}.jpg", "question": "Q?", "chosen": "yes", "rejected": "no"},
    ]
    lines = [json.dumps(kinds[n % 5](n)) for n in range(COUNT)]
    (root / "a.jsonl").write_text("\n\n".join(lines))
    data = [(root / f"{n % 6}.jpg").read_bytes() for n in range(COUNT)]
    pq.write_table(pa.table({"conversations": [json.dumps(TALK)] * COUNT, "image": data}), root / "a.parquet")
    return root


def spec(root, annotation="a.jsonl", **more):
    return SourceSpec("x", str(root), str(root / annotation), **more)


@pytest.fixture
def written(root, tmp_path):
    write_shards(spec(root), tmp_path / "out", shard_bytes=8000)
    return SourceSpec("x", str(root), str(tmp_path / "out"))


def facts(sample):
    """What a sample is, wherever the bytes of its images lie."""
    images = [image.data if isinstance(image, Stored) else Path(image).read_bytes() for image in sample.images]
    answers = (sample.chosen, sample.rejected) if isinstance(sample, Pair) else ()
    return type(sample).__name__, sample.messages, images, sample.videos, answers, sample.source


def all_facts(source):
    return [facts(source[index]) for index in range(len(source))]


@pytest.mark.parametrize("annotation", ["a.jsonl", "a.parquet"])
def test_what_goes_in_comes_out(root, tmp_path, annotation):
    told = []
    manifest = write_shards(
        spec(root, annotation), tmp_path / "out", shard_bytes=8000, report=lambda *now: told.append(now)
    )
    assert told == [(done, COUNT) for done in range(COUNT + 1)]
    assert (manifest.samples, manifest.skipped, manifest.complete) == (COUNT, {}, True)
    assert len(manifest.shards) > 3
    source = open_source(SourceSpec("x", str(root), str(tmp_path / "out")), 7)
    before = open_source(spec(root, annotation), 7)
    assert isinstance(source, ShardSource)
    assert all_facts(source) == all_facts(before)
    first = manifest.shards[0].samples
    assert source[first].where == f"{tmp_path}/out/00001.array_record:1 ({before[first].where})"
    again = write_shards(SourceSpec("x", str(root), str(tmp_path / "out")), tmp_path / "again")
    assert (again.samples, len(again.shards)) == (COUNT, 1)
    assert all_facts(open_source(SourceSpec("x", str(root), str(tmp_path / "again")), 7)) == all_facts(before)


def test_records_keep_their_other_keys(root, written):
    record, _ = open_source(written).record(5)
    assert record["id"] == 5
    assert record["image"] == [Stored("5.jpg", (root / "5.jpg").read_bytes())]


def test_a_fraction_is_taken_when_it_is_written(root, tmp_path):
    assert write_shards(spec(root, repeat=0.55), tmp_path / "out").samples == int(COUNT * 0.55)


def test_sources_read_equal_in_threads_and_in_a_spawned_process(root, written):
    sources = [open_source(spec(root), 1), open_source(spec(root, "a.parquet"), 1), open_source(written, 1)]
    expected = [all_facts(source) for source in sources]
    assert all(len(pickle.dumps(source)) < 1000 for source in sources)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(all_facts, sources)) == expected
    order = np.random.default_rng(0).integers(0, COUNT, 300)
    with ThreadPoolExecutor(8) as pool:
        for source, facts_of in zip(sources, expected, strict=True):
            found = pool.map(lambda index, source=source: facts(source[int(index)]), order)
            assert list(found) == [facts_of[index] for index in order]


def test_a_source_that_changed_is_not_reopened(root, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes((root / "a.jsonl").read_bytes())
    state = pickle.dumps(open_source(SourceSpec("x", str(root), str(file))))
    with file.open("a") as stream:
        stream.write("\n{}\n")
    with pytest.raises(ValueError, match=f"{file}: had 30 samples before, now 31; leave it alone during a run"):
        pickle.loads(state)


def broken(root, tmp_path, lines):
    """The good annotation with bad lines put in, by number."""
    good = (root / "a.jsonl").read_text().split("\n\n")
    for at, line in lines.items():
        good.insert(at, json.dumps(line) if isinstance(line, dict) else line)
    (tmp_path / "bad.jsonl").write_text("\n".join(good) + "\n")
    return SourceSpec("x", str(root), str(tmp_path / "bad.jsonl"))


BAD = {
    0: "{",
    3: {"image": "none.jpg", "conversations": TALK},
    4: {"image": "../0.jpg", "conversations": TALK},
    20: {"video": "none.mp4", "conversations": TALK},
    33: {"image": "a.mp4", "conversations": TALK},
    35: "[]",
}
MESSAGES = [
    ("line", "bad.jsonl:1: not a JSON object"),
    ("image", "bad.jsonl:4: {root}/none.jpg: no such image file"),
    ("path", "bad.jsonl:5: image path '../0.jpg' leaves the root"),
    ("video", "bad.jsonl:21: {root}/none.mp4: no such video file or directory"),
    ("image", "bad.jsonl:34: {root}/a.mp4: cannot be read as an image"),
    ("line", "bad.jsonl:36: found a JSON list"),
]


@pytest.mark.parametrize("shard_bytes", [1, 8000, 1e9])
def test_bad_samples_are_left_out_counted_and_told(root, tmp_path, shard_bytes):
    source = broken(root, tmp_path, BAD)
    manifest = write_shards(source, tmp_path / "out", shard_bytes=shard_bytes, faults="skip")
    assert (manifest.samples, manifest.skipped) == (COUNT, {"line": 2, "image": 2, "path": 1, "video": 1})
    told = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    for entry, (reason, message) in zip(told, MESSAGES, strict=True):
        assert entry["reason"] == reason
        assert message.format(root=root) in entry["message"]
    shards = open_source(SourceSpec("x", str(root), str(tmp_path / "out")))
    assert all_facts(shards) == all_facts(open_source(spec(root)))


def test_the_first_bad_sample_ends_it_and_leaving_out_goes_on(root, tmp_path):
    source = broken(root, tmp_path, {20: BAD[20]})
    with pytest.raises(Fault, match=r"bad.jsonl:21: .*none.mp4: no such video"):
        write_shards(source, tmp_path / "out", shard_bytes=8000)
    kept = Manifest.read(str(tmp_path / "out")).shards
    assert len(kept) > 2
    times = [(tmp_path / "out" / shard.file).stat().st_mtime_ns for shard in kept]
    with pytest.raises(ValueError, match="out: is not complete; the same `ivl3 data shard` continues it"):
        open_source(SourceSpec("x", str(root), str(tmp_path / "out")))
    manifest = write_shards(source, tmp_path / "out", shard_bytes=8000, faults="skip")
    assert manifest.shards[: len(kept)] == kept
    assert [(tmp_path / "out" / shard.file).stat().st_mtime_ns for shard in kept] == times
    assert (manifest.samples, manifest.skipped) == (COUNT, {"video": 1})


@pytest.mark.parametrize("stop", [1, 9, 22, 36])
def test_an_interruption_at_any_place_changes_nothing(root, tmp_path, stop):
    source = broken(root, tmp_path, BAD)
    whole = write_shards(source, tmp_path / "whole", shard_bytes=8000, faults="skip")

    def interrupt(done, total):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, tmp_path / "out", shard_bytes=8000, faults="skip", report=interrupt)
    assert write_shards(source, tmp_path / "out", shard_bytes=8000, faults="skip") == whole
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()
    }


def test_damaged_shards_are_written_again_and_whole_ones_kept(root, written, tmp_path, monkeypatch):
    whole = Manifest.read(written.annotation)
    file = tmp_path / "out" / whole.shards[2].file
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    entries = []
    entry = shard_writer._entry
    monkeypatch.setattr(shard_writer, "_entry", lambda source, n: entries.append(n) or entry(source, n))
    assert write_shards(spec(root), tmp_path / "out", shard_bytes=8000) == whole
    assert min(entries) == whole.shards[1].end
    assert file.read_bytes() == content
    entries.clear()
    assert write_shards(spec(root), tmp_path / "out", shard_bytes=8000) == whole
    assert not entries


def test_other_data_is_not_continued(root, written, tmp_path):
    with pytest.raises(ValueError, match="out holds shards of other data: annotation was .*a.jsonl' and is .*parquet'"):
        write_shards(spec(root, "a.parquet"), tmp_path / "out")
    with pytest.raises(ValueError, match="out holds shards of other data: repeat was 1 and is 0.5"):
        write_shards(spec(root, repeat=0.5), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(ValueError, match="mine holds letter.txt but no shards.json; choose another directory"):
        write_shards(spec(root), tmp_path / "mine")


def test_nothing_good_is_an_error(root, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n[]\n")
    with pytest.raises(ValueError, match=r"x: none of 2 samples is good; .*skipped.jsonl says why"):
        write_shards(SourceSpec("x", "", str(tmp_path / "bad.jsonl")), tmp_path / "out", faults="skip")


def test_a_shard_of_another_size_is_told_when_it_is_opened(written, tmp_path):
    file = tmp_path / "out/00001.array_record"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{file}: has {size - 5} bytes, but shards.json says {size}; copy or make"):
        open_source(written)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        open_source(written)


def test_damage_within_a_shard_is_a_fault_of_its_samples(written, tmp_path):
    first, second = Manifest.read(written.annotation).shards[:2]
    for name, spoil in ((first.file, bytes(first.bytes)), (second.file, None)):
        file = tmp_path / "out" / name
        content = bytearray(file.read_bytes())
        content[: len(spoil) if spoil else 300] = spoil or bytes(300)
        file.write_bytes(content)
    source, faults = open_source(written), []
    for index in range(len(source)):
        try:
            source[index]
        except Fault as fault:
            faults.append(index)
            assert fault.reason == "line"
            assert f"{tmp_path}/out/0000" in str(fault)
            assert ": the shard is damaged (" in str(fault)
    assert set(range(first.samples)) <= set(faults)
    assert max(faults) < second.end


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("\xff", "is damaged"),
        ('{"format": "ivl3 shards 0"}', "format is 'ivl3 shards 0'; valid: 'ivl3 shards 1'"),
        ('{"format": "ivl3 shards 1", "shards": [{"file": 1}]}', "is damaged"),
        ('{"format": "ivl3 shards 1", "shards": []}', "is damaged"),
    ],
)
def test_a_damaged_manifest(tmp_path, content, told):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}/shards.json: {told}"):
        open_source(SourceSpec("x", "", str(tmp_path)))


def test_shards_in_a_bucket(root, written, tmp_path, bucket, monkeypatch):
    """The reader of array_record reads gs:// itself; here it is given the local files."""
    bucket("gs://b/x/shards.json", (tmp_path / "out/shards.json").read_bytes())
    read = array_record_module.ArrayRecordReader

    def reader(path, **options):
        assert path.startswith("gs://b/x/0000")
        return read(path.replace("gs://b/x", str(tmp_path / "out")), **options)

    monkeypatch.setattr(array_record_module, "ArrayRecordReader", reader)
    source = open_source(SourceSpec("x", str(root), "gs://b/x"))
    assert all_facts(source) == all_facts(open_source(spec(root)))


def test_images_in_a_bucket_are_packed(root, tmp_path, bucket):
    for n in range(6):
        bucket(f"gs://b/pictures/{n}.jpg", (root / f"{n}.jpg").read_bytes())
    lines = [json.dumps({"image": f"{n}.jpg", "conversations": TALK}) for n in range(7)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    remote = SourceSpec("x", "gs://b/pictures", str(tmp_path / "a.jsonl"))
    manifest = write_shards(remote, tmp_path / "out", faults="skip")
    assert (manifest.samples, manifest.skipped) == (6, {"image": 1})
    assert "gs://b/pictures/6.jpg: no such image file" in (tmp_path / "out/skipped.jsonl").read_text()
