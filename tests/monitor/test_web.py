"""Who may see the screen in a browser: pages of this server alone, from elsewhere only with the token."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from kcptun_lite.monitor.web import BROWSERS, Door
from tests.programs import wait_until

Ask = Callable[[TestClient], Awaitable[None]]  # type: ignore[type-arg]


def at(door: Door, ask: Ask) -> None:
    async def main() -> None:
        async with TestClient(TestServer(await door._make_app(), host="127.0.0.1")) as client:
            await ask(client)
            while door._browsers:  # whose programs end when they are told to
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_pages_come_from_this_server_alone() -> None:
    async def ask(client: TestClient) -> None:  # type: ignore[type-arg]
        answer = await client.get("/")
        page = await answer.text()
        host = f"127.0.0.1:{client.port}"
        assert answer.status == 200 and f"ws://{host}/ws" in page and f"http://{host}/static/js/textual.js" in page
        assert "googleapis" not in page and "invalid" not in page
        assert (await client.get("/static/js/textual.js")).status == 200

    at(Door("true", "127.0.0.1", 8080), ask)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Host": "["},
        {"Host": "[::1"},
        {"Host": "evil.example:8080"},
        {"Host": '127.0.0.1"><script>'},
        {"Host": "192.168.1.1:8080"},
    ],
)
def test_other_sites_have_no_business_here(headers: dict[str, str]) -> None:
    async def ask(client: TestClient) -> None:  # type: ignore[type-arg]
        for path in ("/", "/ws", "/static/js/textual.js"):
            assert (await client.get(path, headers=headers)).status == 403

    at(Door("true", "127.0.0.1", 8080), ask)


def test_from_elsewhere_the_token_is_needed() -> None:
    door = Door("true", "", 8080)
    assert len(door.token) > 20 and door.token != Door("true", "", 8080).token

    async def ask(client: TestClient) -> None:  # type: ignore[type-arg]
        for path in ("/", "/?token=", "/?token=wrong", "/ws", "/static/js/textual.js"):
            assert (await client.get(path)).status == 403, path
        for cookie in (b"", b"wrong", b"\xff", b"\xed\xa0\x80"):
            headers = {"Cookie": f"{door._cookie}={cookie.decode(errors='surrogateescape')}"}
            assert (await client.get("/", headers=headers)).status == 403, cookie
        answer = await client.get(f"/?token={door.token}", allow_redirects=False)
        assert (answer.status, answer.headers["Location"]) == (302, "/")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert (await client.get("/")).status == 200, "the cookie is enough from now on"
        assert (await client.get("/", headers={"Origin": "https://evil.example"})).status == 403

    at(door, ask)


@pytest.mark.parametrize(
    ("host", "wants_token"),
    [("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False)]
    + [("", True), ("0.0.0.0", True), ("::", True), ("192.168.1.1", True), ("vps.example", True)],
)
def test_which_addresses_want_a_token(host: str, wants_token: bool) -> None:
    assert bool(Door("true", host, 8080).token) == wants_token


def test_there_is_room_for_some_browsers() -> None:
    door = Door("head -c 5", "127.0.0.1", 8080)  # ends when it is told to quit, as the screen does

    async def ask(client: TestClient) -> None:  # type: ignore[type-arg]
        sockets = [await client.ws_connect("/ws") for _ in range(BROWSERS)]
        assert (await client.get("/ws")).status == 503
        for socket in sockets:
            await socket.close()

    at(door, ask)


@pytest.mark.parametrize(
    "size", ["width=1000000&height=24", "width=80&height=1000000", "width=0", "height=-1", "width=x"]
)
def test_a_screen_has_bounds(size: str) -> None:
    async def ask(client: TestClient) -> None:  # type: ignore[type-arg]
        assert (await client.get(f"/ws?{size}")).status == 400

    at(Door("true", "127.0.0.1", 8080), ask)


def test_a_screen_grows_to_its_bounds(tmp_path: Path) -> None:
    """The process behind it reads what it is told: `head` writes that to a file, and ends."""
    resize = b'{"type": "resize", "width": 1000, "height": 1}'
    told = tmp_path / "told"

    async def ask(client: TestClient) -> None:  # type: ignore[type-arg]
        websocket = await client.ws_connect("/ws?width=80&height=24")
        await websocket.send_json(["resize", {"width": 1_000_000, "height": -5}])
        await asyncio.to_thread(wait_until, lambda: told.exists() and resize in told.read_bytes(), "told")
        await websocket.close()

    at(Door(f"head -c {len(resize) + 5} > {told}", "127.0.0.1", 8080), ask)
