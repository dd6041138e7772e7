"""JSON as data files have it, and values as messages show them."""

import math

import pytest

from ivl3_jax.data.json_values import parse_json, shown


def test_what_is_read():
    assert parse_json('{"a": [1, "é"]}') == parse_json('{"a": [1, "é"]}'.encode()) == {"a": [1, "é"]}
    assert parse_json(b"\xef\xbb\xbf[]") == []
    assert math.isnan(parse_json("NaN"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{", "Expecting property name"),
        ("{}".encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
        (b'"\xed\xa0\x80"', "'utf-8' codec can't decode byte 0xed"),
        ("[" * 100_000, "^nested too deep$"),
        ('[{"a": {"b": 1, "c": 2, "b": 1}}]', "^'b' stands in it twice$"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        parse_json(text)


def test_what_is_shown():
    assert [shown(value) for value in (None, "a\n", [1, {"b": 2}], 1.5)] == ["None", "'a\\n'", "[1, {'b': 2}]", "1.5"]
    deep = parse_json("[" * 900 + "]" * 900)
    for value in (deep, {"a": deep}, "x" * 10**6, list(range(10**6)), dict.fromkeys(range(99), "y" * 99), 10**4000):
        assert len(shown(value)) <= 80
