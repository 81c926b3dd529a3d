"""The routes of the reward server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Security
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from safe_rlhf_video import __version__
from safe_rlhf_video.scoring import remote_reward
from safe_rlhf_video.scoring.decisions import PairScore, judge_pair, judge_ranking
from safe_rlhf_video.scoring.harms import Moderation
from safe_rlhf_video.serving.gate import CLIENT_LEFT, answer_error
from safe_rlhf_video.serving.openapi import (
    ERRORS,
    RankAnswer,
    Scores,
    clip_body,
    render_docs,
    trainer_body,
)
from safe_rlhf_video.serving.page_files import DOCUMENT_POLICY, PAGE_POLICY, read_page_files
from safe_rlhf_video.serving.request_clips import Uploads
from safe_rlhf_video.serving.request_models import ClipRequest, PairRequest, RankRequest, read_trainer_request
from safe_rlhf_video.serving.service import Service

UNKNOWN_PAGE = "there is no such page; GET /docs lists all"
WRONG_METHOD = "this page does not take that method; GET /docs lists those that it takes"


def build_app(service: Service) -> FastAPI:
    """Builds the server's routes as an ASGI application; `gate.Gate` belongs before it."""
    app = FastAPI(
        title="Safe RLHF Video: reward server",
        version=__version__,
        description="Reward and cost of generated clips, and the choice among them. Every error is one line.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            StarletteHTTPException: _answer_http_error,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_fault,
        },
    )
    # For OpenAPI, which says with it that a key is needed; `Gate` checks the key.
    key = [Security(HTTPBearer(auto_error=False))] if service.settings.asks_for_key else []
    _add_scoring(app, service, key)
    _add_state(app, service, key)
    _add_pages(app)
    return app


def _add_scoring(app: FastAPI, service: Service, key: list[Any]) -> None:
    scorer = service.scorer

    @app.post("/score", dependencies=key, responses=ERRORS, openapi_extra=clip_body(ClipRequest))
    async def score(request: Request) -> Scores:
        """The scores of one clip for its prompt, by head."""
        async with service.receive(request, ClipRequest.read) as (asked, uploads):
            return Scores(scores=_row(await _score(asked, uploads), 0))

    @app.post("/score_pair", dependencies=key, responses=ERRORS, openapi_extra=clip_body(PairRequest))
    async def score_pair(request: Request) -> PairScore:
        """The choice between two clips for one prompt, and its reason."""
        async with service.receive(request, PairRequest.read) as (asked, uploads):
            trade_off = service.resolve_trade_off(asked)
            scores = await _score(asked, uploads)
            pairs = {head: (float(found[0]), float(found[1])) for head, found in scores.items()}
            return judge_pair(pairs, trade_off, scorer.calibration.heads, service.facts, scorer.no_zero)

    @app.post("/rank", dependencies=key, responses=ERRORS, openapi_extra=clip_body(RankRequest))
    async def rank(request: Request) -> RankAnswer:
        """Any number of clips for one prompt, best first, and where harm labels were trained, the harms of each."""
        async with service.receive(request, RankRequest.read) as (asked, uploads):
            trade_off = service.resolve_trade_off(asked)
            scores = await _score(asked, uploads)
            table = {head: found.tolist() for head, found in scores.items()}
            ranking = judge_ranking(table, trade_off, scorer.calibration.heads, service.facts, scorer.no_zero)
            harms = None
            if scorer.can_moderate:
                harms = tuple(scorer.judge_harms(_row(scores, place)) for place in range(len(asked.videos)))
            return RankAnswer(**vars(ranking), harms=harms)

    @app.post("/moderate", dependencies=key, responses=ERRORS, openapi_extra=clip_body(ClipRequest))
    async def moderate(request: Request) -> Moderation:
        """The harms that one clip shows."""
        service.require_moderation()
        async with service.receive(request, ClipRequest.read) as (asked, uploads):
            return scorer.judge_harms(_row(await _score(asked, uploads), 0))

    @app.post("/remote_reward", dependencies=key, responses=ERRORS, openapi_extra=trainer_body())
    async def reward(request: Request) -> dict[str, Any]:
        """Rewards of many clips, each for its prompt, in the forms of OpenRLHF and align-anything."""
        service.require_decider()
        async with service.receive(request, read_trainer_request) as (asked, uploads):
            scores = await service.score(asked.prompts, await service.clips.find(asked.clips, uploads), uploads)
            table = {head: found.tolist() for head, found in scores.items()}
            return remote_reward.build_answer(table, scorer.resolve_trade_off(None))

    async def _score(asked: ClipRequest | PairRequest | RankRequest, uploads: Uploads) -> dict[str, np.ndarray]:
        files = await service.clips.find(asked.clips, uploads)
        return await service.score([asked.prompt] * len(files), files, uploads)


def _add_state(app: FastAPI, service: Service, key: Sequence[Any]) -> None:
    description = {
        **service.scorer.describe(),
        "backbone": service.facts.backbone,
        "can_moderate": service.scorer.can_moderate,
        "limits": service.settings.limits(),
    }

    @app.get("/model", dependencies=key, responses=ERRORS)
    async def model() -> dict[str, Any]:
        """The model that answers, its heads, its defaults, and the limits of requests."""
        return description

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server lives: 200, or 503 when it is about to end or its model's thread has ended."""
        service.require_life()
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether a clip would be scored now: as /healthz, the model goes on, and a decoding process runs or starts."""
        await service.require_readiness()
        return {"status": "ready"}

    @app.get("/metrics", dependencies=key, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _add_pages(app: FastAPI) -> None:
    page = read_page_files()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(render_docs(app.openapi()), headers={"Content-Security-Policy": DOCUMENT_POLICY})

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file_of(name: str) -> Response:
        return page_file(name)

    def page_file(name: str) -> Response:
        if name not in page:
            raise HTTPException(404, UNKNOWN_PAGE)
        return Response(
            page[name].content, media_type=page[name].media_type, headers={"Content-Security-Policy": PAGE_POLICY}
        )


def _row(scores: Mapping[str, np.ndarray], place: int) -> dict[str, float]:
    return {head: float(values[place]) for head, values in scores.items()}


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    texts = {"Not Found": UNKNOWN_PAGE, "Method Not Allowed": WRONG_METHOD}
    detail = texts.get(error.detail, error.detail)
    return answer_error(HTTPException(error.status_code, detail, error.headers))


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _answer_fault(request: Request, error: Exception) -> Response:
    message = "the server has a fault, its log says which; try again, or tell its administrator"
    return JSONResponse({"error": message}, 500)
