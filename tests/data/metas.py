"""A small meta file of every kind of sample, on disk."""

import json

from tests.data.pictures import picture

SAID = [
    "What number is it?",
    "<b>&amp;</b> </div>",
    "图中写着什么数字？",
    "كم عدد الأرقام؟",
    "Add.\n\nthe digits of both images",
]


def talk(*turns, **fields):
    """A line of conversations, of human and gpt in turn."""
    spoken = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(turns)]
    return json.dumps({**fields, "conversations": spoken}, ensure_ascii=False)


def write_lines(file, lines):
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_meta(directory, pairs=False):
    """Writes meta.json of three sources, or four, and what they need.

    `text` has 40 samples, of which 2 are bad; `images` 24, of which 3 are bad, one of them behind its header; `<some>`
    6 of three pictures; `pairs` 5 good pairs and a bad one.
    """
    for seed, (width, height) in enumerate([(60, 40), (150, 50), (40, 200)]):
        picture(width, height, seed).save(directory / f"{seed}.png")
    (directory / "cut.png").write_bytes((directory / "1.png").read_bytes()[:2000])

    text = [talk(SAID[n % 5], f"It is {n}." + " there" * (n * 7 % 60), "Sure?", "Yes.") for n in range(39)]
    text[5], text[20] = "{", talk("What?")
    opened = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "?"}, {"from": "gpt", "value": "7"}]
    write_lines(directory / "text.jsonl", [*text, json.dumps({"conversations": opened})])

    images = [talk(f"<image>\n{SAID[n % 5]}", f"number {n}", image=f"{n % 3}.png") for n in range(16)]
    images[3] = talk("<image>\nWhat?", "7", image="none.png")
    images[8] = talk("<image>\nWhat?", "7", image="cut.png")
    images[9] = talk("<image> or <image>?", "7", image="0.png")
    two = ["0.png", "1.png"]
    images += [talk("Image-1: <image>\nImage-2: <image>\nBoth?", f"{n}", image=two) for n in range(3)]
    images += [talk("Both?", f"{n}", image=two) for n in range(2)]
    images += [talk("Here <image>", "A picture.", "And <image>?", f"{n}", image=two) for n in range(3)]
    write_lines(directory / "images.jsonl", images)
    three = ["2.png", "1.png", "0.png"]
    write_lines(
        directory / "some.jsonl", [talk("<image>\n<image>\n<image>\nAll?", f"{n}", image=three) for n in range(6)]
    )

    sources = {"text": {"annotation": "text.jsonl"}, "images": {"annotation": "images.jsonl", "max_dynamic_patch": 4}}
    sources["<some>"] = {"annotation": "some.jsonl", "repeat_time": 2}
    if pairs:
        pair = {"question": "<image>\nWhich?", "chosen": "It is 7.", "rejected": "Eight, I think."}
        lines = [json.dumps({**pair, "image": f"{n % 3}.png"}) for n in range(5)]
        write_lines(directory / "pairs.jsonl", [*lines, json.dumps({**pair, "rejected": None})])
        sources["pairs"] = {"annotation": "pairs.jsonl"}
    (directory / "meta.json").write_text(json.dumps(sources))
    return directory / "meta.json"
