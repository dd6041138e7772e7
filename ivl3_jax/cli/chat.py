"""`ivl3 chat`: questions about images and videos, answered in the terminal as the answer is generated."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import NoReturn

from ivl3_jax.cli import UsageError

HELP = """Asks a checkpoint about images and videos; without a question it is a conversation.
ivl3 chat InternVL3-1B-hf photo.jpg "What is written here?"
"""

EXAMPLES = """examples:
  ivl3 chat InternVL3-1B-hf photo.jpg "What is written here?"
  ivl3 chat InternVL3-1B-hf clip.mp4 "What happens?" --frames 16 --clip 10 25
  ivl3 chat InternVL3-1B-hf photo.jpg          a conversation, in which /help lists the commands
"""


def run(argv: list[str]) -> int:
    """Prints the answer piece by piece, or converses until the end of input; returns 0."""
    arguments = _parse(argv)
    files, question = _split(arguments.inputs)
    talking = arguments.interactive or (question is None and sys.stdin.isatty())
    if question is None and not talking:
        found = f"the last argument is the file {files[-1]!r}" if files else "there is only the directory"
        raise UsageError(f"the question is missing: {found}; with --interactive, questions are read from the input")
    # Late, so that mistakes above answer at once.
    from ivl3_jax.cli.talk import Talk
    from ivl3_jax.conversion.checkpoint import load
    from ivl3_jax.data.records import Video
    from ivl3_jax.data.video import is_video
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.inference.sampling import Sampling
    from ivl3_jax.sharding.plan import ShardingPlan

    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed, arguments.repetition_penalty
    )
    images = [file for file in files if not is_video(file)]
    videos = [Video(file, arguments.frames, arguments.clip) for file in files if is_video(file)]
    if not videos and arguments.clip:
        raise UsageError("--clip is given, but no video")
    plan = ShardingPlan.read(arguments.plan, arguments.mesh)
    model = load(arguments.directory, arguments.dtype, plan, dynamic_ntk=not arguments.no_dynamic_ntk)
    chat = Chat(model, system=arguments.system, visual_delta=arguments.visual_delta, int8=arguments.int8 or ())
    del model
    settings = {"max_new_tokens": arguments.max_new_tokens, "sampling": sampling}
    if talking:
        return Talk(chat, images, videos, frames=arguments.frames, settings=settings).run(question)
    for piece in chat.stream(question or "", images, videos, **settings):
        print(piece, end="", flush=True)
    print()
    return 0


def _split(inputs: Sequence[str]) -> tuple[list[str], str | None]:
    """The files, and the question if the last input is one."""
    # os.path.exists and not Path.exists, which fails for very long text.
    files, question = (list(inputs), None) if not inputs or os.path.exists(inputs[-1]) else (inputs[:-1], inputs[-1])
    for file in files:
        if not os.path.exists(file):
            raise UsageError(
                f"there is no image file or video {file!r}; the order is: ivl3 chat DIRECTORY [IMAGE or VIDEO ...] "
                "QUESTION, with the question in quotes"
            )
    return list(files), question


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see ivl3 chat --help")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def _fraction(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a fraction such as 1/4") from None


def _mesh(text: str) -> dict[str, int]:
    import yaml

    try:
        sizes = yaml.safe_load(text)
    except yaml.YAMLError:
        sizes = None
    if not isinstance(sizes, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no mesh such as '{{tensor: 4}}'")
    return sizes


def _dashed(token: str) -> str:
    """An option with dashes for underscores in its name, which are accepted as in all commands."""
    return re.sub(r"^--\w+(?==|$)", lambda name: name[0].replace("_", "-"), token, flags=re.ASCII)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="ivl3 chat",
        description="Asks a checkpoint about images and videos. Without a question it is a conversation.",
        epilog=EXAMPLES,
        formatter_class=_Formatter,
    )
    parser.add_argument("directory", help="checkpoint: config.json, safetensors weights, tokenizer")
    parser.add_argument(
        "inputs",
        nargs="*",
        default=[],
        metavar="[IMAGE or VIDEO ...] QUESTION",
        help="files, then the question; <image> and <video> in it say where one belongs, otherwise they stand in "
        "front. A video is a file, an animated GIF, or a directory of frames",
    )
    add = parser.add_argument
    add("--interactive", action="store_true", help="a conversation, also where the input is no terminal")
    add("--max-new-tokens", type=int, default=1024, help="the answer's length at most")
    add("--temperature", type=float, default=0.0, help="0 always takes the most likely token")
    add("--top-k", type=int, default=0, help="draw from the k most likely tokens; 0 is all")
    add("--top-p", type=float, default=1.0, help="draw from the most likely tokens that make up p")
    add("--repetition-penalty", type=float, default=1.0, help="above 1, tokens of prompt and answer are less likely")
    add("--seed", type=int, default=0, help="of the draws")
    add("--frames", type=int, default=8, help="how many frames of a video are looked at")
    add("--clip", type=float, nargs=2, metavar=("START", "END"), help="the seconds of the videos that are looked at")
    add(
        "--system",
        default="published",
        help="the system message: published (InternVL's own in the original layout, none in -hf), internvl, none, or "
        "your own text",
    )
    add(
        "--visual-delta",
        type=_fraction,
        metavar="DELTA",
        help="the step between positions of visual tokens, 1/256 to 1 (V2PE); dynamic NTK is then off",
    )
    add("--no-dynamic-ntk", action="store_true", help="plain rotary frequencies beyond the trained length")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and computation; by default float32 on a CPU, else bfloat16",
    )
    add("--plan", default="single", help="a shipped sharding plan, or a YAML file; single is one device")
    add("--mesh", type=_mesh, metavar="SIZES", help="sizes of the plan's axes, such as '{tensor: 4}'")
    add(
        "--int8",
        action="append",
        choices=("weights", "cache"),
        help="kept in eight bits, at some loss of quality; may be given twice",
    )
    if not argv:
        parser.print_help(sys.stderr)
        raise UsageError("a directory and a question are needed")
    return parser.parse_intermixed_args([_dashed(token) for token in argv])
