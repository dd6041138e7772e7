"""Speed of the data engine beside InternVL's loader and packing, and what a long file and a late start cost.

    python benchmarks/data.py [--only images stages packing index resume] [--repeats 3]

Images: tiles a second and core from JSONL and JPEG files of 0.2 to 12 megapixels to packed batches, beside a loader
written as InternVL's is (`plain_loader.py`). Stages: where the time of one image goes. Packing: rows, fill and time,
beside InternVL's algorithm. Index: a JSONL file of 5,000,000 lines, memory, first batch. Resume: going on from step
1,000,000. Figures are medians; those of images and stages are of CPU time, both sides taking turns, so that a busy
machine changes little. Files go to a temporary directory, 5 GB. Needs Linux and
pip install torch scikit-image scikit-learn.
"""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

NEEDED = {"torch": "torch", "skimage": "scikit-image", "sklearn": "scikit-learn"}


def main() -> None:
    parts = ("images", "stages", "packing", "index", "resume")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=20_000, help="packed")
    parser.add_argument("--lines", type=int, default=5_000_000, help="of the long file")
    arguments = parser.parse_args()
    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        raise SystemExit(f"benchmarks/data.py needs: pip install {' '.join(missing)}")

    # Not above: processes that are measured import this file, and should import no more than what they use.
    from measuring import machine

    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        if "images" in arguments.only:
            from image_speed import images

            images(folder, arguments.repeats)
        if "stages" in arguments.only:
            from image_stages import stages

            stages(folder)
        if "packing" in arguments.only:
            from packing_speed import packing

            packing(arguments.samples, arguments.repeats)
        if "index" in arguments.only:
            from line_speed import index

            index(folder, arguments.lines, arguments.repeats)
        if "resume" in arguments.only:
            from resume_speed import resume

            resume(folder, arguments.lines, arguments.repeats)


if __name__ == "__main__":
    main()
