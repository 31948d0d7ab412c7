"""The HTTP application: routes, limits, responses."""

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from diva.models.modeling import DivaForConditionalGeneration
from diva.serving.batching import Batcher, BatchLimits
from diva.serving.listening import Listener, RequestLimits
from diva.serving.metrics import Metrics
from diva.serving.protocol import Answer, ApiError, Completion, Piece, usage
from diva.serving.rows import Job

# For responses that are sent before the body was read: nothing reads the rest of the body.
_UNREAD = {401, 408, 413, 415, 429}
_GONE = 499  # the client has gone: not sent, only counted in the metrics; nginx's number
# The number of new tokens that were allowed, if it is less than the request asked for.
MAX_TOKENS_HEADER = "x-diva-max-tokens"
# The number of a choice, and its next piece or its end.
Event = tuple[int, Piece | Completion | Exception]
_STUCK_SECONDS = 5.0  # time for a client after its deadline, to fetch what is ready


@dataclass(frozen=True)
class ServerLimits:
    """How many requests the server accepts, and for how long."""

    queue: int = 256  # requests besides those of a full batch
    timeout: float = 120.0  # seconds from the request's first byte to the answer's last
    body_bytes: int = 32 * 2**20


@dataclass
class Ticket:
    """A request's place in the server, from the request's first byte to the answer's last byte."""

    deadline: float  # of the event loop's clock, seconds
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    jobs: Sequence[Job] = ()


class EventStream(StreamingResponse):
    """Server-sent events. The ticket is given back whichever way the stream ends."""

    def __init__(
        self,
        content: AsyncIterator[str],
        headers: dict[str, str],
        deadline: float,
        leave: Callable[[], None],
    ):
        headers = headers | {"cache-control": "no-cache"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._deadline = deadline
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            # The stream ends by itself at the deadline, unless the client does not read it.
            with contextlib.suppress(TimeoutError, ClientDisconnect):
                async with asyncio.timeout_at(self._deadline + _STUCK_SECONDS):
                    await super().__call__(scope, receive, send)
        finally:
            self._leave()


class Service:
    """State and functions that the routes share."""

    def __init__(
        self,
        model: DivaForConditionalGeneration,
        name: str,
        api_key: str | None,
        limits: ServerLimits,
        batch_limits: BatchLimits,
        request_limits: RequestLimits,
    ):
        self.name = name
        self.created = int(time.time())
        self.metrics = Metrics()
        self.batcher = Batcher(model, batch_limits, self.metrics.batch_rows.observe)
        self._listener = Listener(model, name, request_limits)
        self._hearing_threshold = model.config.hearing_threshold
        self._api_key = api_key
        self._limits = limits
        self._places = limits.queue + batch_limits.rows
        # Decoding takes tenths of a second and much memory. So it runs in few threads, never on the event loop.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="diva-listen")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.batcher.start()
        yield
        await asyncio.to_thread(self.batcher.close)
        self._pool.shutdown(cancel_futures=True)

    async def authorize(self, http: Request) -> None:
        """Raises ApiError (401) without the bearer token, where there is one."""
        if self._api_key is None:
            return
        given = http.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self._api_key.encode()):
            raise ApiError(
                401,
                "the Authorization header needs 'Bearer ' and this server's key",
                kind="authentication_error",
                code="invalid_api_key",
            )

    # ---- a chat completion

    async def chat_completions(self, http: Request) -> Response:
        ticket, leave = self._enter()
        try:
            response = await self._answer(http, ticket, leave)
        except BaseException as error:
            leave()
            status = error.status if isinstance(error, ApiError) else 500
            self.metrics.requests.labels(status).inc()
            raise
        self.metrics.requests.labels(response.status_code).inc()
        if not isinstance(response, EventStream):
            leave()
        return response

    def _enter(self) -> tuple[Ticket, Callable[[], None]]:
        """A ticket, and the function that gives it back. Raises ApiError (429) if every place is taken."""
        if self._places == 0:
            self.metrics.requests.labels(429).inc()
            raise ApiError(
                429,
                "too many requests wait already; try again",
                kind="rate_limit_error",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        loop = asyncio.get_running_loop()
        came = loop.time()
        ticket = Ticket(came + self._limits.timeout)
        self._places -= 1
        self.metrics.active.inc()

        def leave() -> None:
            for job in ticket.jobs:
                job.cancelled = True  # frees the row of an answer that nobody waits for
            self._places += 1
            self.metrics.active.dec()
            self.metrics.seconds.observe(loop.time() - came)

        return ticket, leave

    async def _answer(self, http: Request, ticket: Ticket, leave: Callable[[], None]) -> Response:
        loop = asyncio.get_running_loop()
        body = await self._body(http, ticket.deadline)

        def deliver(choice: int, what: Piece | Completion | Exception) -> None:
            loop.call_soon_threadsafe(ticket.events.put_nowait, (choice, what))

        listening = loop.run_in_executor(self._pool, self._listener.prepare, body, deliver)
        request, ticket.jobs = await self._unless_gone(http, ticket, listening)
        allowed = ticket.jobs[0].max_tokens
        headers = {MAX_TOKENS_HEADER: str(allowed)} if allowed < (request.limit or 0) else {}
        self.batcher.submit(ticket.jobs)
        # A stream waits for its first piece too, so that an error before it still has a status of its own.
        first = await self._unless_gone(http, ticket, ticket.events.get())
        if isinstance(first[1], Exception):
            raise _our_fault() from first[1]
        answer = Answer(request.model, request.include_usage, self._hearing_threshold)
        if request.stream:
            return EventStream(self._stream(answer, first, ticket), headers, ticket.deadline, leave)
        completions = await self._unless_gone(http, ticket, _all(first, ticket))
        self._count(completions)
        return JSONResponse(answer.whole(completions), headers=headers)

    async def _body(self, http: Request, deadline: float) -> bytes:
        """The whole body. Raises ApiError (408, 413, 415). Never more than the limit is in memory."""
        if http.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "a body with a Content-Encoding is not read; send it as it is")
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body is JSON: it needs 'Content-Type: application/json'")
        limit = self._limits.body_bytes
        too_large = ApiError(413, f"the body is larger than {limit / 2**20:g} MiB", code="body_too_large")
        if int(http.headers.get("content-length", 0)) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                async for part in http.stream():
                    body += part
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", kind="timeout_error") from None
        except ClientDisconnect:
            raise ApiError(_GONE, "the client has gone") from None
        return bytes(body)

    async def _unless_gone(self, http: Request, ticket: Ticket, wanted: Awaitable) -> Any:
        """The result of `wanted`. Raises ApiError at the deadline (504) or if the client has gone."""
        future = asyncio.ensure_future(wanted)
        # The body has been read, so the only message that can still come is that the client has gone.
        gone = asyncio.ensure_future(http.receive())
        try:
            left = ticket.deadline - asyncio.get_running_loop().time()
            await asyncio.wait({future, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if gone.done():
                raise ApiError(_GONE, "the client has gone")
            raise self._too_late()
        finally:
            future.cancel()
            gone.cancel()

    async def _stream(self, answer: Answer, event: Event, ticket: Ticket) -> AsyncIterator[str]:
        """Server-sent events; the first is made of `event`. An error is the last event of a stream."""
        completions: list[Completion] = []
        for choice in range(len(ticket.jobs)):
            yield _sse(answer.first_chunk(choice))
        try:
            while True:
                choice, what = event
                if isinstance(what, Exception):
                    yield _sse(_our_fault().body)
                    return
                yield _sse(answer.chunk(choice, what))
                if isinstance(what, Completion):
                    completions.append(what)
                    if len(completions) == len(ticket.jobs):
                        break
                async with asyncio.timeout_at(ticket.deadline):
                    event = await ticket.events.get()
        except TimeoutError:
            yield _sse(self._too_late().body)
            return
        self._count(completions)
        if answer.include_usage:
            yield _sse(answer.usage_chunk(completions))
        yield "data: [DONE]\n\n"

    def _too_late(self) -> ApiError:
        return ApiError(
            504, f"no answer within {self._limits.timeout:g} s", kind="timeout_error", code="timeout"
        )

    def _count(self, completions: Sequence[Completion]) -> None:
        counted = usage(completions)
        self.metrics.tokens.labels("prompt").inc(counted["prompt_tokens"])
        self.metrics.tokens.labels("completion").inc(counted["completion_tokens"])


async def _all(event: Event, ticket: Ticket) -> list[Completion]:
    """The ends of all choices, in order; the first that ended is `event`. Raises ApiError (500)."""
    ended: dict[int, Completion] = {}
    while True:
        choice, what = event
        if isinstance(what, Exception):
            raise _our_fault() from what
        assert isinstance(what, Completion)
        ended[choice] = what
        if len(ended) == len(ticket.jobs):
            return [ended[number] for number in sorted(ended)]
        event = await ticket.events.get()


def _sse(event: dict) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _our_fault() -> ApiError:
    return ApiError(500, "the server failed on this request; its log says why", kind="server_error")


def create_app(service: Service, origins: Sequence[str] = ()) -> FastAPI:
    """An application with the service's routes and errors as JSON. Pages from `origins` may read the answers."""
    app = FastAPI(lifespan=service.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[MAX_TOKENS_HEADER, "retry-after"],
        )
    private = [Depends(service.authorize)]
    model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "diva"}
    app.post("/v1/chat/completions", dependencies=private, response_model=None)(service.chat_completions)

    @app.post("/v1/audio/transcriptions", dependencies=private)
    @app.post("/v1/audio/translations", dependencies=private)
    async def transcripts() -> None:
        raise ApiError(
            404,
            "DiVA answers what is said and writes no transcripts: send the clip to /v1/chat/completions, and ask"
            " a speech recogniser such as Whisper for a transcript",
            code="unsupported_route",
            headers={"connection": "close"},  # the clip was not read
        )

    @app.get("/v1/models", dependencies=private)
    async def models() -> dict:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", dependencies=private)
    async def one_model(name: str) -> dict:
        if name != service.name:
            raise ApiError(
                404, f"the model {name!r:.100} does not exist", param="model", code="model_not_found"
            )
        return model

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/metrics", dependencies=private)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    _shape_errors(app)
    return app


def _shape_errors(app: FastAPI) -> None:
    """Send every error in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def told(http: Request, error: ApiError) -> JSONResponse:
        close = {"connection": "close"} if error.status in _UNREAD else {}
        return JSONResponse(error.body, error.status, headers=error.headers | close)

    @app.exception_handler(HTTPException)
    async def no_route(http: Request, error: HTTPException) -> JSONResponse:
        shaped = ApiError(error.status_code, f"{http.method} {http.url.path:.100}: {error.detail}")
        return JSONResponse(shaped.body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def our_fault(http: Request, error: Exception) -> JSONResponse:
        return JSONResponse(_our_fault().body, 500)
