"""Reading from buckets, and writing that is complete or has not happened."""

import io

import pytest
from PIL import Image

from ivl3_jax.data.files import read_bytes, replacing
from ivl3_jax.data.images import open_image
from ivl3_jax.data.records import Stored
from tests.data.pictures import picture


def png(width=8, height=6):
    stream = io.BytesIO()
    picture(width, height).save(stream, "PNG")
    return stream.getvalue()


def test_an_image_in_a_bucket_and_one_at_hand(bucket, tmp_path):
    bucket("gs://photos/a/b.png", png())
    (tmp_path / "b.png").write_bytes(png())
    expected = picture(8, 6).tobytes()
    for source in ("gs://photos/a/b.png", str(tmp_path / "b.png"), Stored("b.png", png())):
        image = open_image(source)
        assert (image.mode, image.tobytes()) == ("RGB", expected)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("gs://photos/none.png", "gs://photos/none.png: no such image file"),
        (Stored("a.png", b""), "a.png: cannot be read as an image: the file is empty"),
        (Stored("a.png", png()[:60]), r"a.png: cannot be read as an image \("),
        (Stored("a.png", b"hello"), r"a.png: cannot be read as an image \(Unidentified"),
    ],
)
def test_images_that_cannot_be_read(bucket, source, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        open_image(source)


def test_a_bomb_at_hand_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(ValueError, match="a.png: refused as a possible decompression bomb"):
        open_image(Stored("a.png", png()))


def test_trouble_on_the_way_is_an_os_error(bucket, monkeypatch):
    from etils import epath

    monkeypatch.setattr(epath, "Path", lambda path: 1 / 0)
    with pytest.raises(OSError, match=r"gs://b/a: cannot be read \(ZeroDivisionError"):
        read_bytes("gs://b/a")


def test_without_the_library_for_buckets_its_extra_is_named(monkeypatch, capsys):
    from etils import epath

    from ivl3_jax.cli.main import main

    def absent(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(epath, "Path", absent)
    assert main(["data", "shard", "gs://b/meta.json", "out"]) == 1
    assert "needs gcsfs, which is not installed: it comes with the extra 'gcs'" in capsys.readouterr().err


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(file) as stream:
        stream.write(b"half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"old"
    with replacing(file) as stream:
        stream.write(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none/a"):
        pass
