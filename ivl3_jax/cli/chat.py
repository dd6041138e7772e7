"""`ivl3 chat`: one question about pictures, answered in the terminal as it is generated."""

import argparse
import os
import sys
from typing import NoReturn

from ivl3_jax.cli import UsageError

HELP = """Asks a checkpoint about pictures.
ivl3 chat InternVL3-1B-hf photo.jpg "What is written here?"
"""


def run(argv: list[str]) -> int:
    """Prints the answer piece by piece; returns 0."""
    arguments = _parse(argv)
    *images, question = arguments.inputs
    for image in images:
        if not os.path.isfile(image):  # not Path.is_file, which fails for very long text
            raise UsageError(
                f"there is no image file {image!r}; the order is: ivl3 chat DIRECTORY [IMAGE ...] QUESTION, with the "
                "question in quotes"
            )
    if not images and os.path.isfile(question):
        raise UsageError(f"the question is missing: the last argument is the file {question!r}")
    # Late, so that mistakes above answer at once.
    import ivl3_jax
    from ivl3_jax.inference.sampling import Sampling

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    model = ivl3_jax.load(arguments.directory, dtype=arguments.dtype)
    chat = ivl3_jax.Chat(model, system=arguments.system)
    del model
    for piece in chat.stream(question, images, max_new_tokens=arguments.max_new_tokens, sampling=sampling):
        print(piece, end="", flush=True)
    print()
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see ivl3 chat --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="ivl3 chat",
        description="Asks a checkpoint about pictures.",
        epilog='example: ivl3 chat InternVL3-1B-hf photo.jpg "What is written here?"',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("directory", help="checkpoint: config.json, safetensors weights, tokenizer")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="[IMAGE ...] QUESTION",
        help="image files, then the question; <image> in it says where an image belongs, otherwise they stand in front",
    )
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="the answer's length at most")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 always takes the most likely token")
    parser.add_argument("--top-k", type=int, default=0, help="draw from the k most likely tokens; 0 is all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the most likely tokens that make up p")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--system", help="a system message; without it there is none, in either layout")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and computation; by default float32 on a CPU, else bfloat16",
    )
    if not argv:
        parser.print_help(sys.stderr)
        raise UsageError("a directory and a question are needed")
    return parser.parse_intermixed_args(argv)
