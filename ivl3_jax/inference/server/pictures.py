"""Pictures that a request names: data URLs, and files and addresses as far as the server allows them."""

import asyncio
import base64
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from ivl3_jax.data.records import Stored
from ivl3_jax.inference.server.errors import ApiError

DATA = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[^;,]*)*(?P<base64>;base64)?,", re.ASCII)
SECONDS = 10.0  # that an address may take


@dataclass(frozen=True)
class Sources:
    """Where pictures may come from, besides data URLs.

    Attributes:
        files: folders whose files may be named as file:///...; none by default.
        hosts: that are asked over http and https, as `host` or `host:port`; none by default.
        bytes: that a picture may have.
    """

    files: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    bytes: int = 20 << 20


async def fetch(url: str, sources: Sources, param: str) -> Stored:
    """The file of a picture.

    Args:
        param: the place in the body, for messages.

    Raises:
        ApiError: 400; it is no URL of an allowed kind, cannot be read, or is too large.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return Stored(param, _data(url, sources, param))
    if scheme == "file":
        return Stored(param, await asyncio.to_thread(_file, url, sources, param))
    if scheme in ("http", "https"):
        return Stored(param, await _remote(url, sources, param))
    raise _refused(param, f"{_shown(url)} is no data URL (data:image/png;base64,...) and no other that is read here")


def _data(url: str, sources: Sources, param: str) -> bytes:
    head = DATA.match(url)
    if head is None or not head["base64"]:
        raise _refused(param, f"{_shown(url)} is no data URL in base64; it must begin as data:image/png;base64, does")
    if (kind := head["type"] or "") and not kind.startswith("image/"):
        raise _refused(param, f"{_shown(url)} is of type {kind}; it must be an image")
    if (len(url) - head.end()) * 3 // 4 > sources.bytes + 2:
        raise _too_large(param, sources)
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except ValueError as error:
        raise _refused(param, f"{_shown(url)} is no valid base64 ({error})") from None


def _file(url: str, sources: Sources, param: str) -> bytes:
    if not sources.files:
        raise _refused(param, "files are not read by this server; send the picture as a data URL")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refused(param, f"{_shown(url)} is no address of a file") from None
    if parts.netloc not in ("", "localhost"):
        raise _refused(param, f"{_shown(url)} names a host; a file is named as file:///folder/picture.png")
    try:
        path = Path(unquote(parts.path)).resolve(strict=True)
        allowed = any(path.is_relative_to(folder.resolve()) for folder in sources.files)
        if not allowed or not path.is_file():
            raise FileNotFoundError
        if path.stat().st_size > sources.bytes:
            raise _too_large(param, sources)
        return path.read_bytes()
    except (OSError, ValueError):
        # The same words for what is not there and what is not allowed: nobody learns what lies elsewhere.
        raise _refused(param, f"{_shown(url)} is no file in a folder that this server reads") from None


async def _remote(url: str, sources: Sources, param: str) -> bytes:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise _refused(param, f"{_shown(url)} is no address") from None
    if (host if port is None else f"{host}:{port}") not in sources.hosts:
        allowed = ", ".join(sources.hosts) or "none"
        raise _refused(
            param, f"{_shown(url)}: this server asks no other host for pictures than {allowed}; send a data URL"
        )
    found = bytearray()
    try:
        # Without redirections, which would lead to other hosts, and without proxies of the environment.
        async with (
            asyncio.timeout(SECONDS),
            httpx.AsyncClient(follow_redirects=False, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != 200:
                raise _refused(param, f"{_shown(url)} answers with status {response.status_code}; it must be 200")
            async for piece in response.aiter_bytes():
                found += piece
                if len(found) > sources.bytes:
                    raise _too_large(param, sources)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        why = "it takes too long" if isinstance(error, TimeoutError) else type(error).__name__
        raise _refused(param, f"{_shown(url)} cannot be read ({why})") from None
    return bytes(found)


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_image_url")


def _too_large(param: str, sources: Sources) -> ApiError:
    told = f"{param}: the picture is larger than {sources.bytes / 2**20:.3g} MiB, the most that is taken"
    return ApiError(400, told, param=param, code="image_too_large")


def _shown(url: str) -> str:
    return url if len(url) <= 80 else f"{url[:77]}..."
