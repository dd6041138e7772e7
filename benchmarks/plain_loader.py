"""InternVL's loader written out from its description, in PyTorch, to compare with.

As the original does: all lines in memory, a sample decoded before it is packed, every tile made a normalised float32
tensor by itself, image blocks tokenised whole, rows kept in buffers to which samples are concatenated, rows and
collator of static shape (`strict_mode`). What the original leaves to torchvision is written as torchvision does it.
"""

import io
import json
import os
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

IGNORE = -100
SIZE, TILE_TOKENS = 448, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Tensors = dict[str, torch.Tensor]


def to_tensor(tile: Image.Image) -> torch.Tensor:
    """uint8 to float32 [3, size, size] in 0..1, as `torchvision.transforms.ToTensor`."""
    pixels = torch.from_numpy(np.array(tile, np.uint8, copy=True))
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def normalize(tensor: torch.Tensor) -> torch.Tensor:
    """As `torchvision.transforms.Normalize`."""
    tensor = tensor.clone()
    mean, std = (torch.as_tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return tensor.sub_(mean).div_(std)


def reencoded(tile: Image.Image) -> Image.Image:
    """What `data_augment` does to a tile."""
    with io.BytesIO() as stored:
        tile.save(stored, "JPEG", quality=random.randint(75, 100))
        return Image.open(stored).copy()


def transform(tile: Image.Image) -> torch.Tensor:
    tile = tile if tile.mode == "RGB" else tile.convert("RGB")
    if tile.size != (SIZE, SIZE):
        tile = tile.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return normalize(to_tensor(tile))


def closest_grid(width: int, height: int, max_tiles: int) -> tuple[int, int]:
    grids = {
        (i, j)
        for n in range(1, max_tiles + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if 1 <= i * j <= max_tiles
    }
    nearest, best = float("inf"), (1, 1)
    for grid in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - grid[0] / grid[1])
        if distance < nearest:
            nearest, best = distance, grid
        elif distance == nearest and width * height > 0.5 * SIZE * SIZE * grid[0] * grid[1]:
            best = grid
    return best


def dynamic_preprocess(image: Image.Image, max_tiles: int) -> list[Image.Image]:
    """The tiles of an image and its thumbnail."""
    cols, rows = closest_grid(*image.size, max_tiles)
    resized = image.resize((SIZE * cols, SIZE * rows))
    tiles = [resized.crop(box(n, cols)) for n in range(cols * rows)]
    if len(tiles) != 1:
        tiles.append(image.resize((SIZE, SIZE)))
    return tiles


def box(number: int, cols: int) -> tuple[int, int, int, int]:
    left, top = number % cols * SIZE, number // cols * SIZE
    return left, top, left + SIZE, top + SIZE


def load_image(file: str) -> Image.Image:
    return Image.open(file).convert("RGB")


def preprocess(tokenizer: tokenizers.Tokenizer, turns: list[dict[str, str]], tiles: int) -> Tensors:
    """Ids and labels of a conversation whose first turn has one image: `preprocess_internvl2_5`."""
    turns = deepcopy(turns)
    block = f"<img>{'<IMG_CONTEXT>' * (TILE_TOKENS * tiles)}</img>"
    for turn in turns:
        if turn["from"] == "human" and tiles:
            turn["value"] = turn["value"].replace("<image>", block, 1)
    names = {"human": "user", "gpt": "assistant"}
    texts = [f"<|im_start|>{names[turn['from']]}\n{turn['value']}<|im_end|>\n" for turn in turns]
    header = len(tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False).ids)
    ids, labels = [], []
    for turn, found in zip(turns, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        tokens = np.array(found.ids)
        target = np.full(len(tokens), IGNORE)
        if turn["from"] == "gpt":
            target[header:-1] = tokens[header:-1]
        ids.append(tokens)
        labels.append(target)
    return {"input_ids": torch.tensor(np.concatenate(ids)), "labels": torch.tensor(np.concatenate(labels))}


@dataclass
class Samples:
    """A JSONL file, each line a conversation about one image or none."""

    file: str
    tokenizer: tokenizers.Tokenizer
    max_tiles: int = 12

    def __post_init__(self) -> None:
        with open(self.file) as stream:
            self.lines = stream.readlines()
        random.Random(0).shuffle(self.lines)
        self.pad = self.tokenizer.token_to_id("<|endoftext|>")
        self.image_end = self.tokenizer.token_to_id("</img>")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Tensors:
        record = json.loads(self.lines[index])
        if "image" in record:
            image = load_image(os.path.join(os.path.dirname(self.file), record["image"]))
            tiles = dynamic_preprocess(image, self.max_tiles)
            flags, spelled = [1] * len(tiles), len(tiles)
        else:  # the ViT sees a white picture, of which nothing is used
            tiles, flags, spelled = [Image.new("RGB", (SIZE, SIZE), (255, 255, 255))], [0], 0
        pixels = torch.stack([transform(tile) for tile in tiles])
        return self.encoded(record, spelled) | {"pixel_values": pixels, "image_flags": torch.tensor(flags)}

    def encoded(self, record: dict[str, Any], tiles: int) -> Tensors:
        """The text of a record whose image has so many tiles."""
        found = preprocess(self.tokenizer, record["conversations"], tiles)
        assert (found["input_ids"] == self.image_end).sum() == (tiles > 0)
        mask = found["input_ids"].ne(self.pad)
        positions = mask.long().cumsum(-1) - 1
        return found | {"attention_mask": mask, "position_ids": positions.masked_fill_(mask == 0, 1)}


@dataclass
class Packed(IterableDataset):
    """Rows of samples: `PackedDataset` with `strict_mode`, `replacement`, and without `allow_overflow`.

    Attributes:
        tokens, tiles: the room in a row. buffers: rows that are kept open.
    """

    samples: Samples
    tokens: int
    tiles: int
    buffers: int = 20

    def __iter__(self) -> Iterator[Tensors]:
        worker, open_rows = get_worker_info(), []
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            for index in range(first, len(self.samples), step):
                for row in self.add(self.samples[index], open_rows):
                    yield padded(row, self.tiles)

    def add(self, sample: Tensors, open_rows: list[Tensors]) -> list[Tensors]:
        """Puts a sample into one of the open rows, ordered by tiles, and takes out those that are done."""
        row = merged(self.find(sample, open_rows), sample)
        done = []
        if len(row["input_ids"]) == self.tokens:
            done.append(row)
        else:
            place = sum(len(other["pixel_values"]) >= len(row["pixel_values"]) for other in open_rows)
            open_rows.insert(place, row)
        while open_rows and (len(open_rows[0]["pixel_values"]) == self.tiles or len(open_rows) > self.buffers):
            done.append(open_rows.pop(0))
        return done

    def find(self, sample: Tensors, open_rows: list[Tensors]) -> Tensors | None:
        for place, row in enumerate(open_rows):
            fits = len(row["pixel_values"]) + len(sample["pixel_values"]) <= self.tiles
            if fits and len(row["input_ids"]) + len(sample["input_ids"]) <= self.tokens:
                return open_rows.pop(place)
        return None


def merged(row: Tensors | None, sample: Tensors) -> Tensors:
    if row is None:
        return sample | {"data_index": torch.zeros_like(sample["input_ids"])}
    number = torch.ones_like(sample["input_ids"]) + row["data_index"][-1].item()
    sample = sample | {"data_index": number}
    return {name: torch.cat([row[name], sample[name]]) for name in row}


def padded(row: Tensors, tiles: int) -> Tensors:
    missing = tiles - len(row["pixel_values"])
    if not missing:
        return row
    empty = torch.stack([torch.zeros_like(row["pixel_values"][0]) for _ in range(missing)])
    pixels = torch.cat([row["pixel_values"], empty])
    flags = torch.cat([row["image_flags"], torch.tensor([0] * missing)])
    return row | {"pixel_values": pixels, "image_flags": flags}


@dataclass
class Collate:
    """`packed_collate_fn` with its `concat_pad_data_collator`: rows to a batch, tokens filled up."""

    tokens: int
    pad: int

    def __call__(self, rows: list[Tensors]) -> dict[str, Any]:
        ends, filled = [], []
        for row in rows:
            index = row["data_index"]
            lengths, weight = [0], torch.zeros(len(index))
            for number in range(int(index.max()) + 1):
                of_it = index == number
                lengths.append(lengths[-1] + int(of_it.sum()))
                trained = int((row["labels"][of_it] != IGNORE).sum())
                weight[of_it] = trained**-0.5 if trained else 0.0
            ends.append(torch.tensor([*lengths, self.tokens] if lengths[-1] < self.tokens else lengths))
            filled.append(
                {
                    "input_ids": self.fill(row["input_ids"], self.pad),
                    "labels": self.fill(row["labels"], IGNORE),
                    "position_ids": self.fill(row["position_ids"], self.pad),
                    "loss_weight": self.fill(weight, 0),
                }
            )
        batch: dict[str, Any] = {name: torch.stack([row[name] for row in filled]) for name in filled[0]}
        for name in ("pixel_values", "image_flags"):
            batch[name] = torch.cat([row[name] for row in rows])
        batch["attention_mask"] = torch.stack(ends)
        batch["loss_weight"] = torch.where(batch["labels"] == IGNORE, 0, batch["loss_weight"]).tolist()
        return batch

    def fill(self, values: torch.Tensor, value: int) -> torch.Tensor:
        whole = torch.full((self.tokens,), value, dtype=values.dtype)
        whole[: len(values)] = values
        return whole


def plain_loader(
    file: Path, tokenizer: tokenizers.Tokenizer, tokens: int, tiles: int, workers: int
) -> Iterator[dict[str, Any]]:
    """Batches of one row, without end."""
    torch.set_num_threads(1)
    samples = Samples(str(file), tokenizer)
    rows = Packed(samples, tokens, tiles)
    return iter(DataLoader(rows, batch_size=1, num_workers=workers, collate_fn=Collate(tokens, samples.pad)))
