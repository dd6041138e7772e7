"""`ivl3 serve`: a checkpoint behind OpenAI's chat protocol, with a page to talk to it."""

import os
import socket
import time
from pathlib import Path

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse

HELP = """Serves a checkpoint: OpenAI's chat completions, metrics, and a chat page.
ivl3 serve InternVL3-1B-hf --port 8000
"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY = "IVL3_API_KEY"


def run(argv: list[str]) -> int:
    """Serves until Ctrl-C; returns 0."""
    summary, example = HELP.strip().splitlines()
    serve(**vars(parse(serve, argv, prog="ivl3 serve", description=summary, example=example)))
    return 0


def serve(
    directory: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key: str | None = None,
    files: list[Path] = [],  # noqa: B006 what jsonargparse shows as the default, and nobody changes
    hosts: list[str] = [],  # noqa: B006
    system: str = "published",
    dtype: str | None = None,
    plan: str = "single",
    mesh: dict[str, int] = {},  # noqa: B006
    rows: int = 32,
    positions: int | None = None,
    warm_up: int = 0,
    int8: list[str] = [],  # noqa: B006
    max_tokens: int = 4096,
    max_images: int = 32,
    max_samples: int = 16,
    max_body: int = 64,
    max_picture: int = 20,
    waiting: int = 256,
    seconds: float = 600.0,
) -> None:
    """Serves a checkpoint.

    Args:
        directory: checkpoint in either layout.
        host: address to listen at; others than this machine can reach it only if it says so.
        port: to listen at; 0 takes a free one.
        name: of the model in answers; by default the directory's.
        api_key: that clients have to send; better in the environment, as IVL3_API_KEY.
        files: folders whose pictures may be named as file:///...
        hosts: that pictures may be fetched from, as host or host:port.
        system: the system message; published, internvl, none, or your own text.
        dtype: of weights and computation; by default float32 on a CPU, else bfloat16.
        plan: a shipped sharding plan, or a YAML file; by default one device.
        mesh: sizes of its axes.
        rows: answers that are generated at once.
        positions: of the cache, of all rows together; by default it grows.
        warm_up: positions of the longest request, its answer included, that is compiled for before it serves.
        int8: what is kept in eight bits, of weights and cache.
        max_tokens: of an answer at most.
        max_images: pictures of a request at most.
        max_samples: answers to a request at most.
        max_body: MiB of a request at most.
        max_picture: MiB of a picture at most.
        waiting: requests that are taken at a time; further ones are told to come back.
        seconds: until a request has to be answered.
    """
    key = api_key or os.environ.get(KEY) or None
    if host not in LOOPBACK and key is None:
        raise UsageError(
            f"option --host is {host!r}, which others can reach, and there is no key; set {KEY}, or listen at 127.0.0.1"
        )
    positive = {
        "rows": rows,
        "max-tokens": max_tokens,
        "max-samples": max_samples,
        "max-body": max_body,
        "max-picture": max_picture,
        "waiting": waiting,
        "seconds": seconds,
    }
    for option, value in positive.items():
        if not value > 0:
            raise UsageError(f"option --{option} is {value}; it must be above 0")
    if warm_up and positions is None:
        raise UsageError("option --warm-up needs --positions: a cache that grows compiles anew")
    if positions is not None and not 0 <= warm_up <= positions:
        raise UsageError(f"option --warm-up is {warm_up}; it must be 0 to {positions}, the positions of the cache")
    for folder in files:
        if not folder.is_dir():
            raise UsageError(f"option --files has {str(folder)!r}, which is no folder")
    try:
        import uvicorn

        from ivl3_jax.inference.server.app import Settings, application
    except ModuleNotFoundError as error:
        told = f"{error.name} is not installed; the server needs the extra serve: pip install 'ivl3-jax[serve]'"
        raise ModuleNotFoundError(told, name=error.name) from None
    listening = _bound(host, port)
    from ivl3_jax.conversion.checkpoint import load
    from ivl3_jax.inference.chat import Chat
    from ivl3_jax.inference.request import Limits
    from ivl3_jax.inference.server.pictures import Sources
    from ivl3_jax.inference.server.prompts import Bounds
    from ivl3_jax.sharding.plan import ShardingPlan

    limits = Limits(rows=rows, positions=positions)
    model = load(directory, dtype, ShardingPlan.read(plan, mesh))
    chat = Chat(model, system=system, limits=limits, int8=int8)
    del model
    if warm_up:
        from ivl3_jax.inference import warm_up as warming

        before = time.perf_counter()
        print(f"compiling for requests of up to {warm_up:,} positions", flush=True)
        warming.warm_up(chat.engine, warm_up)
        print(f"compiled in {time.perf_counter() - before:.0f} s", flush=True)
    app = application(
        chat,
        Settings(
            name or directory.resolve().name,
            key,
            Sources(tuple(files), tuple(each.lower() for each in hosts), max_picture << 20),
            Bounds(max_images, max_tokens, max_samples, max_body << 20, seconds, waiting),
            names=LOOPBACK if host in LOOPBACK else None,
        ),
    )
    # Idle connections are kept for longer than clients keep them (httpx 5 s): who ends one cannot send on it just then.
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=75, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    listening.listen(2048)  # so that whoever reads the line below is heard
    where, free = listening.getsockname()[:2]
    where = f"[{where}]" if ":" in where else where
    print(f"serving {app.state.server.settings.model} at http://{where}:{free} (Ctrl-C ends)", flush=True)
    server.run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, so that one that cannot be had is told of before a model is loaded."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        why = error.strerror if isinstance(error, OSError) else "a port is 0 to 65535"
        raise UsageError(f"--host {host} --port {port} cannot be listened at: {why}") from None
    return found
