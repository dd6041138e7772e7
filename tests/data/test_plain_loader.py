"""The loader that benchmarks/data.py compares with makes of a file what ours does, in the original's form."""

import json
from itertools import islice

import numpy as np
import pytest

from ivl3_jax.batch import IGNORE
from ivl3_jax.data import ChatTemplate, Encoder, Processor, SourceSpec, Tokenizer, open_source
from tests.data.pictures import picture

torch = pytest.importorskip("torch")

from benchmarks import plain_loader as plain  # noqa: E402

SHAPES = (640, 480), (300, 900), (200, 200), None  # the last is without an image


@pytest.fixture
def file(tmp_path):
    records = []
    for number, shape in enumerate(SHAPES):
        turns = [("human", "How many?"), ("gpt", f"There are {number}."), ("human", "Why?"), ("gpt", "It was counted.")]
        record = {"conversations": [{"from": who, "value": text} for who, text in turns]}
        if shape is not None:
            picture(*shape, number).save(tmp_path / f"{number}.png")
            record["image"] = f"{number}.png"
            record["conversations"][0]["value"] = "<image>\nHow many?"
        records.append(json.dumps(record) + "\n")
    (tmp_path / "lines.jsonl").write_text("".join(records))
    return tmp_path / "lines.jsonl"


def test_samples(file, trained):
    theirs, source = plain.Samples(str(file), trained), open_source(SourceSpec("all", str(file.parent), str(file)))
    theirs.lines = file.read_text().splitlines()  # they were shuffled
    encoder, rng = Encoder(Processor(Tokenizer(trained), ChatTemplate(), 448, 256), 16384, 48), np.random.default_rng(0)
    for number, shape in enumerate(SHAPES):
        found = theirs[number]
        (expected,) = encoder.decode(encoder.measure(source[number], rng)[0], rng)
        assert np.array_equal(found["input_ids"], expected.tokens)
        assert np.array_equal(found["labels"], np.where(expected.supervised, expected.tokens, IGNORE))
        assert np.array_equal(found["position_ids"], expected.positions)
        if shape is not None:
            pixels = torch.stack([plain.normalize(plain.to_tensor(tile)) for tile in expected.tiles])
            assert torch.equal(found["pixel_values"], pixels)
        assert found["image_flags"].tolist() == [int(shape is not None)] * max(1, len(expected.tiles))


def test_rows(file, trained):
    samples = plain.Samples(str(file), trained)
    rows = list(islice(plain.Packed(samples, tokens=5000, tiles=16, buffers=1), 6))
    assert all(len(row["pixel_values"]) == 16 and len(row["input_ids"]) <= 5000 for row in rows)
    assert any(row["data_index"].max() > 0 for row in rows)
    batch = plain.Collate(5000, samples.pad)([rows[0]])
    ends, labels = batch["attention_mask"][0], batch["labels"][0]
    assert (ends[0], ends[-1]) == (0, 5000)
    for number, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        trained_on = labels[start:end] != IGNORE
        weights = torch.tensor(batch["loss_weight"][0][start:end])[trained_on]
        assert torch.all(weights == weights.new_tensor(float(trained_on.sum())) ** -0.5)
        assert number == rows[0]["data_index"].max() + 1 or trained_on.any()
