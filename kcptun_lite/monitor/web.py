"""The screen in browsers: textual-serve, with a door.

In      an address to listen on
Out     a web server that starts a screen for each browser
Knows   who may come in: pages of this very server, and with other addresses than loopback only who has the token
Cost    25 MiB, and a process of 50 MiB for each browser
"""

import logging
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.server import Server

BROWSERS = 8
COLUMNS, ROWS = 1000, 500  # at most: a screen of a million by a million would eat all memory
SHUTDOWN = 1.0  # s that browsers are waited for at the end; they never leave by themselves
PLACEHOLDER = "kcptun-lite.invalid"  # stands in textual-serve's page where the browser's own address belongs
FONT = re.compile(r"<link\s+rel=\"stylesheet\"\s+href=\"https://[^\"]*\"\s*/>")  # of another host; the browser has some
NO_ICON = '<link rel="icon" href="data:,">'  # else browsers ask for one, and complain

HOST = re.compile(r"[\w.:\[\]-]+")  # fit for a page

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door(Server):
    """textual-serve's server for those who may see it."""

    def __init__(self, command: str, host: str, port: int) -> None:
        super().__init__(command, host, port, title="kcptun-lite-monitor", public_url=f"http://{PLACEHOLDER}")
        self.token = "" if _is_loopback(host) else secrets.token_urlsafe(18)
        self._cookie = f"kcptun-lite-{port}"  # a browser gives cookies to all ports of a host
        self._browsers = 0

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()

        @web.middleware
        async def let_in(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._let_in(request, handler)

        app.middlewares.append(let_in)
        return app

    async def _let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # Any page on the web may name us, by a name that leads here (DNS rebinding) or in a WebSocket's address.
        host = _hostname(f"//{request.host}") if HOST.fullmatch(request.host) else ""
        if not host or not (self.token or _is_loopback(host)):
            raise web.HTTPForbidden(text="this address is not served; use 127.0.0.1 or localhost")
        origin = request.headers.get("Origin")
        if origin and origin.partition("://")[2] != request.host:
            raise web.HTTPForbidden(text="pages of other sites have no business here")
        if self.token:
            if secrets.compare_digest(request.query.get("token", "").encode(), self.token.encode()):
                answer = web.HTTPFound("/")  # the token in the address bar would be read over the shoulder
                answer.set_cookie(self._cookie, self.token, httponly=True, samesite="Strict")
                raise answer
            cookie = request.cookies.get(self._cookie, "").encode(errors="replace")  # which may be no UTF-8
            if not secrets.compare_digest(cookie, self.token.encode()):
                raise web.HTTPForbidden(text="the address with the token is needed, as the program has printed it")
        return await handler(request)

    async def handle_index(self, request: web.Request) -> web.Response:
        """The page, with nothing in it that another host would have to give."""
        page = await super().handle_index(request)
        assert isinstance(page, web.Response)  # aiohttp_jinja2 has made one of the dict
        text = FONT.sub(NO_ICON, page.text or "").replace(PLACEHOLDER, request.host)
        return web.Response(text=text, content_type="text/html")

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        query = request.query
        if not (_fits(query.get("width", "80"), COLUMNS) and _fits(query.get("height", "24"), ROWS)):
            raise web.HTTPBadRequest(text=f"a screen has at most {COLUMNS} columns and {ROWS} rows")
        if self._browsers >= BROWSERS:
            raise web.HTTPServiceUnavailable(text=f"{BROWSERS} browsers are looking already")
        self._browsers += 1
        try:
            return await super().handle_websocket(request)
        finally:
            self._browsers -= 1

    async def _process_messages(self, websocket: web.WebSocketResponse, app_service: AppService) -> None:
        """What a browser says, for as long as it is there; its window may grow to the most we show."""
        resize = app_service.set_terminal_size

        async def resize_within_bounds(width: int, height: int) -> None:
            await resize(min(max(int(width), 1), COLUMNS), min(max(int(height), 1), ROWS))

        app_service.set_terminal_size = resize_within_bounds  # type: ignore[method-assign]
        await super()._process_messages(websocket, app_service)

    async def on_startup(self, app: web.Application) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host or "HOST"
        token = f"?token={self.token}" if self.token else ""
        print(f"kcptun-lite-monitor: open http://{host}:{self.port}/{token} (Ctrl-C ends)", flush=True)

    def serve(self, debug: bool = False) -> None:
        """Listen, say so, and serve until SIGINT or SIGTERM. Raises: OSError if the address is not to be had."""
        is_v6 = ":" in self.host or (not self.host and socket.has_dualstack_ipv6())
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        listening = socket.create_server((self.host, self.port), family=family, dualstack_ipv6=is_v6 and not self.host)
        logging.basicConfig(level="WARNING")  # lines of info would have the token
        web.run_app(self._make_app(), sock=listening, shutdown_timeout=SHUTDOWN, print=None)


def _hostname(url: str) -> str:
    """The host's name in a URL that anybody may have made up; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # a bracket is missing
        return ""


def _fits(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) <= most


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def run(paths: Sequence[str], host: str, port: int) -> int:
    """Serve until a signal to stop; returns the exit code. Raises: OSError if the address is not to be had."""
    command = [sys.executable, "-m", "kcptun_lite.monitor", "--", *paths]
    Door(f"exec {shlex.join(command)}", host, port).serve()  # without a shell between: it looks for its parent
    return 0
