"""Pictures and videos to test with."""

from fractions import Fraction

import numpy as np
from PIL import Image

MILLISECOND = Fraction(1, 1000)
STEP = 12  # by which the grey of a video's frames grows


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def grey(index: int) -> np.ndarray:
    """Frame `index` of a test video, uint8 [48, 64, 3]."""
    return np.full((48, 64, 3), index * STEP % 256, np.uint8)


def write_video(file, frames: int, times=None, rate: int = 10):
    """A video of `grey` frames with keyframes and frames out of order; `times` in units of 1/1000 s make it uneven."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "2", "g": "6", "qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = MILLISECOND
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(grey(index), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def write_noise(file, options=None):
    """A video of 60 frames of noise, 6 seconds, which fill the file evenly; `options` are the container's."""
    import av

    noise = np.random.default_rng(0)
    with av.open(str(file), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "2", "g": "6", "qp": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(60):
            pixels = noise.integers(0, 256, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file
