"""The page's server, on this machine alone: its files, the image, and the falls of one box at a time."""

import io
import logging
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from listwise_preference.data.ranked_images import Box
from listwise_preference.errors import DataError
from listwise_preference.generation.ask import Asked
from listwise_preference.pages.page import Page

logger = logging.getLogger("listwise_preference")

_PAGE = Page(__package__, "ask", "What does the response rest on?", "ask_data.js", "ASK", asks=True)
_LONGEST = 1600  # longer side of the image as the page shows it, pixels


def serve(asked: Asked, folder: Path, port: int) -> None:
    """Serve the page of what was asked until it is interrupted.

    Args:
        folder: for the page's files.
        port: on 127.0.0.1; 0 takes one that is free.

    Raises:
        DataError: the port is taken.
    """
    listening = listen(port)
    logger.info(f"http://127.0.0.1:{listening.getsockname()[1]} (stop with Ctrl-C)")
    with suppress(KeyboardInterrupt):
        server(application(asked, folder)).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """A socket that takes connections from now on."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        raise DataError(f"--serve {port}: {error.strerror}; take another port, or 0") from None
    return listening


def server(app: Starlette) -> uvicorn.Server:
    """The server of the application, which says nothing where all is well."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning"))


def application(asked: Asked, folder: Path) -> Starlette:
    """The page, ``/image`` and ``/falls``."""
    _PAGE.start(folder)
    shown = asked.image.copy()
    shown.thumbnail((_LONGEST, _LONGEST))
    content = io.BytesIO()
    shown.save(content, "JPEG", quality=90)
    policies = [{"name": one.name, "tokens": list(one.texts), "logps": list(one.logps)} for one in asked.policies]
    width, height = asked.image.size
    _PAGE.finish(folder, {"question": asked.question, "width": width, "height": height, "policies": policies})
    one_at_a_time = threading.Lock()

    def compute(box: Box) -> dict[str, list[float]]:
        with one_at_a_time:
            return asked.falls(box)

    async def image(request: Request) -> Response:
        return Response(content.getvalue(), media_type="image/jpeg")

    async def falls(request: Request) -> Response:
        try:
            value: Any = await request.json()
            box = Box(*(int(edge) for edge in value["box"]))
            return JSONResponse(await run_in_threadpool(compute, box))
        except (ValueError, TypeError, KeyError) as error:
            return JSONResponse({"error": f"no box inside the image: {error}"}, status_code=400)

    routes = [
        Route("/image", image),
        Route("/falls", falls, methods=["POST"]),
        Mount("/", StaticFiles(directory=folder, html=True)),
    ]
    # A page of elsewhere, under a name that leads to this machine, gets nothing.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(routes=routes, middleware=[hosts])
