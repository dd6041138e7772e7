"""Damaged input of every kind, see `tests.data.fuzz`; each part in a process of its own, which a crash would end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT, LONG = 1000, 5000


def fuzz(first, count):
    command = [sys.executable, "-m", "tests.data.fuzz", str(count), str(first)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    # libtiff writes to the error stream by itself; nothing else is to.
    assert "Warning" not in done.stderr, done.stderr[-5000:]
    found = {line[:20].strip(): int(line[20:]) for line in done.stdout.splitlines()[:-1]}
    assert {"encoded", "line", "image", "video", "placeholder", "meta file refused", "meta file read"} <= set(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_damaged_input(part):
    fuzz(part * SHORT, SHORT)


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_much_damaged_input(part):
    fuzz(part * LONG, LONG)


BOMBS = """
import struct, sys
from pathlib import Path
from PIL import Image
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.images import image_size, open_image
from ivl3_jax.data.records import Stored
from ivl3_jax.data.video import sample_frames, spread, Video
from tests.data.bad_files import GIF, encoded, png
from tests.data.fuzz import peak_memory

def claims(format, old, new):
    content = encoded(format)
    assert old in content
    return Stored(format, content.replace(old, new, 1))

bombs = [
    Stored("PNG", png(20_000, 20_000)),
    claims("JPEG", struct.pack(">HH", 48, 64), struct.pack(">HH", 65500, 65500)),
    claims("GIF", struct.pack("<HH", 64, 48), struct.pack("<HH", 65535, 65535)),
    claims("BMP", struct.pack("<ii", 64, 48), struct.pack("<ii", 60_000, 60_000)),
    claims("PPM", b"64 48", b"60000 60000"),
    claims("JPEG2000", struct.pack(">II", 48, 64), struct.pack(">II", 60_000, 60_000)),
]
(folder := Path(sys.argv[1])).mkdir(exist_ok=True)
(folder / "a.gif").write_bytes(GIF)
open_image(Stored("good", encoded("PNG")))  # what is loaded but once
before = peak_memory()
for bomb in bombs:
    for look in (image_size, open_image):
        try:
            look(bomb)
        except Fault as fault:
            assert fault.reason == "bomb", fault
        else:
            raise AssertionError(bomb.name)
try:
    sample_frames(folder / "a.gif", spread(Video("a.gif")), lambda frame: frame)
except Fault as fault:
    assert "225000000 pixels" in str(fault)
else:
    raise AssertionError("a.gif")
print((peak_memory() - before) >> 20)
"""


def test_a_bomb_takes_no_memory(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BOMBS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64  # MiB; the smallest of them would take 1,200
