"""Constants from a file."""

import pytest

from ivl3_jax.lab.calibration import Calibration


def test_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("products: 0.8\nici: 0.7\n")
    assert Calibration.read(file) == Calibration(products=0.8, ici=0.7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("speed: 1", "'speed' is no constant; known: products, vectors"),
        ("products: 1.2", r"Calibration.products is 1.2; it must be above 0 and at most 1"),
        ("products: fast", "Calibration.products is 'fast'"),
        ("- 1", "is no constant"),
        ("a: [", "is not valid YAML"),
        ("vectors: 10.5", "Calibration.vectors is 10.5; it must be above 0 and at most 10"),
        ("vectors: 0", "Calibration.vectors is 0; it must be above 0 and at most 10"),
        ("hbm: .nan", "Calibration.hbm is nan"),
        ("hbm: true", "Calibration.hbm is True"),
        ("false", "False is no constant"),
        ("vectors: 2025-13-45", "is not valid YAML: month must be in 1..12"),
        ("vectors: " + "[" * 5000, "is not valid YAML"),
        ("ici: 0.7\nproducts: 0.8\nici: 0.6", "is not valid YAML at line 3: 'ici' stands twice"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_what_is_no_calibration(tmp_path, text, says):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says) as error:
        Calibration.read(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300


def test_nothing_in_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("# nothing\n")
    assert Calibration.read(tmp_path / "mine.yaml") == Calibration()


def test_what_is_changed():
    assert Calibration().changed == Calibration(hbm=0.9).changed == ""
    assert Calibration(vectors=3, ici=0.7).changed == "vectors 3 (shipped 0.85), ici 0.7 (shipped 0.85)"
