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
    ],
)
def test_what_is_no_calibration(tmp_path, text, says):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        Calibration.read(file)
    assert str(file) in str(error.value)
