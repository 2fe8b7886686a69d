"""The body of a request: not too large, not too slow, and JSON."""

import asyncio
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_BODY = 2**20  # bytes
MAX_DEPTH = 10  # of lists and objects in a body
BODY_SECONDS = 10.0  # for all of a body to arrive

_CLOSE = {"Connection": "close"}
_EXAMPLE = 'send one such as {"prompt": "ROMEO:"}'


async def read_bytes(request: Request, max_body: int = MAX_BODY) -> bytes:
    """All of a body. `HTTPException` if it has more than `max_body` bytes, or is too slow."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > max_body:
                    raise HTTPException(413, f"the body is too large; send at most {max_body:,} bytes", _CLOSE)
    except TimeoutError:
        message = f"the body did not arrive within {BODY_SECONDS:g} s; send the request again"
        raise HTTPException(408, message, _CLOSE) from None
    return bytes(content)


async def read_object(request: Request, max_body: int = MAX_BODY) -> dict[str, Any]:
    """The JSON object in a body. `HTTPException` if it is none, too large, or too slow."""
    content = await read_bytes(request, max_body)
    try:
        # a large one in a thread, so that others get their answers meanwhile
        body = _parse(content) if len(content) <= MAX_BODY else await asyncio.to_thread(_parse, content)
    except (ValueError, RecursionError):  # ValueError: also if it is not UTF-8
        raise HTTPException(400, f"the body is no JSON in UTF-8; {_EXAMPLE}") from None
    if not isinstance(body, dict):
        raise HTTPException(400, f"the body is no JSON object; {_EXAMPLE}")
    return body


def _parse(content: bytes) -> Any:
    """The JSON in a body. `ValueError` or `RecursionError` if there is none."""
    body = json.loads(content)
    json.dumps(body, ensure_ascii=False).encode()  # not possible of a half of a surrogate pair
    if not _is_shallow(body, MAX_DEPTH):
        raise ValueError
    return body


def _is_shallow(value: object, depth: int) -> bool:
    """Whether lists and objects are nested at most `depth` times."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return depth >= 0 and all(_is_shallow(child, depth - 1) for child in children)
