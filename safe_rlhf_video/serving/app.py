"""The routes of the reward server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from safe_rlhf_video import __version__
from safe_rlhf_video.scoring import Moderation, PairScore
from safe_rlhf_video.serving import answers, documents
from safe_rlhf_video.serving.bodies import ClientLeft, read_fields
from safe_rlhf_video.serving.clip_references import Uploads
from safe_rlhf_video.serving.gate import CLIENT_LEFT, error_headers, read_headers
from safe_rlhf_video.serving.page_files import DOCUMENT_POLICY, PAGE_POLICY, read_page_files
from safe_rlhf_video.serving.request_fields import RequestError
from safe_rlhf_video.serving.service import Service

Work = Callable[[Service, Mapping[str, Any], Uploads], Coroutine[Any, Any, dict[str, Any]]]

_UNKNOWN = "there is no such page; GET /docs lists all"


def build_app(service: Service) -> FastAPI:
    """The server's routes as an ASGI application; `gate.Gate` belongs before it."""
    app = FastAPI(
        title="Safe RLHF Video: reward server",
        version=__version__,
        description="Reward and cost of generated clips, and the choice among them. Every error is one line.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            RequestError: _tell_error,
            HTTPException: _tell_http_error,
            ClientLeft: _tell_nobody,
            Exception: _tell_fault,
        },
    )
    # OpenAPI says with it that a key is needed; `Gate` is what asks for it.
    key = [Security(HTTPBearer(auto_error=False))] if service.settings.api_key else []
    _add_scoring(app, service, key)
    _add_state(app, service, key)
    _add_pages(app)
    return app


def _add_scoring(app: FastAPI, service: Service, key: list[Any]) -> None:
    def add(path: str, work: Work, fields: tuple[str, ...], answer: Any, body: dict[str, Any]) -> None:
        async def route(request: Request) -> Response:
            return await _answer(request, service, work, fields)

        app.add_api_route(
            path,
            route,
            methods=["POST"],
            dependencies=key,
            name=path.removeprefix("/"),
            description=work.__doc__,
            responses=documents.responses(answer),
            openapi_extra=body,
        )

    for path, work, fields, answer in (
        ("/score", answers.score, answers.CLIP_FIELDS, documents.Scores),
        ("/score_pair", answers.score_pair, answers.PAIR_FIELDS, PairScore),
        ("/rank", answers.rank, answers.RANK_FIELDS, documents.RankAnswer),
        ("/moderate", answers.moderate, answers.CLIP_FIELDS, Moderation),
    ):
        add(path, work, fields, answer, documents.clip_body(fields))
    add("/remote_reward", answers.reward, (), None, documents.reward_body())


def _add_state(app: FastAPI, service: Service, key: list[Any]) -> None:
    description = {
        **service.scorer.describe(),
        "backbone": service.facts.backbone,
        "can_moderate": service.scorer.can_moderate,
        "limits": service.settings.limits(),
    }

    @app.get("/model", dependencies=key, responses=documents.responses())
    async def model() -> Response:
        """Which model answers, its heads, its defaults, and the limits of requests."""
        return _json(description)

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether requests are taken: 200, or 503 when the server is about to end."""
        if service.is_stopping:
            raise RequestError(503, "the server is shutting down", 10)
        return _json({"status": "ok"})

    @app.get("/metrics", dependencies=key)
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return PlainTextResponse(
            service.metrics.text(service.gauges()), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _add_pages(app: FastAPI) -> None:
    page = read_page_files()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(documents.render(app.openapi()), headers={"Content-Security-Policy": DOCUMENT_POLICY})

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file_of(name: str) -> Response:
        return page_file(name)

    def page_file(name: str) -> Response:
        if name not in page:
            raise RequestError(404, _UNKNOWN)
        return Response(
            page[name].content, media_type=page[name].media_type, headers={"Content-Security-Policy": PAGE_POLICY}
        )


async def _answer(request: Request, service: Service, work: Work, fields: tuple[str, ...]) -> Response:
    """Receive a request, work on it while its client waits, and answer."""
    service.check_room()  # before the body is received, and again when it is
    async with service.within_time(), contextlib.AsyncExitStack() as stack:
        uploads = stack.enter_context(Uploads(service.upload_folder))
        headers = read_headers(request.scope)
        values = await read_fields(
            request.receive, headers, fields, service.settings, uploads, service.large_bodies, stack
        )
        await stack.enter_async_context(service.take())
        return _json(await _while_connected(request, work(service, values, uploads)))


async def _while_connected(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    async def leave() -> None:
        # After the body there is nothing but the end of the connection.
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _tell_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _json({"error": str(error)}, error.status, error_headers(error))


async def _tell_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: _UNKNOWN, 405: "this page does not take that method; GET /docs tells which"}
    return _json({"error": text.get(error.status_code, str(error.detail))}, error.status_code, error.headers)


async def _tell_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _tell_fault(request: Request, error: Exception) -> Response:
    return _json({"error": "a fault of the server, which its log tells; try again, or tell who runs it"}, 500)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps(value, allow_nan=False)
    return Response(content, status, headers, media_type="application/json")
