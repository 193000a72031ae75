"""The pytest plugin of trio-broker: a broker of play money, and clients of it, as fixtures.

It stands outside of the package, and imports neither that nor Trio before a test asks for one of
its fixtures: a test run that has nothing to do with brokers pays nothing for having it installed.

**Where a sandbox lives.** A Trio test has its sandbox in its own run, so that the clock of the
test, a `MockClock` say, is the sandbox's too. Any other test gets one in a thread. A fixture of
pytest's can't be async for some tests and not for others. So there are two of them behind
``broker_sandbox``, which chooses when it is asked for: an async one, which the plugin that runs the
test drives (pytest-trio, or anyio's), and a plain one. From pytest-trio it gets a placeholder
instead of a sandbox, and hands that on, as pytest-trio fills in whatever placeholder occurs as an
argument. That is why what wants the sandbox names ``broker_sandbox`` as an argument; and so a test
suite can put a fixture of its own in its place.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio_broker import BrokerWSClient
    from trio_broker.sandbox import BrokerClients, Sandbox, ThreadedSandbox
    from trio_broker.sandbox.testing import Wishes

_T = TypeVar("_T")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker.

    Args:
        config: pytest's.
    """
    config.addinivalue_line(
        "markers",
        "broker(seed=0, faults=[...], **settings): what the sandbox of trio-broker's fixtures is "
        "like: the keyword arguments of trio_broker.sandbox.open_sandbox, and faults to begin with "
        "by name: 'stop_pushing', or ('swallow', {'op': 'swap', 'times': 1})",
    )


# ---- What tests ask for


@pytest.fixture
def broker_sandbox(request: pytest.FixtureRequest) -> Sandbox | ThreadedSandbox:
    """A fresh broker of play money, as the marker `broker` has it, with seed 0 if it has none.

    In a Trio test a `trio_broker.sandbox.Sandbox` in the test's own run, in any other test a
    `trio_broker.sandbox.ThreadedSandbox`.
    """
    where = "trio" if _is_run_by_trio(request) else "thread"
    sandbox: Sandbox | ThreadedSandbox = request.getfixturevalue(f"_broker_sandbox_in_{where}")
    return sandbox


@pytest.fixture
def broker_client(request: pytest.FixtureRequest) -> BrokerWSClient:
    """A connected `BrokerWSClient` of the sandbox's first account, for Trio tests."""
    client: BrokerWSClient = request.getfixturevalue(_client_fixture(request, "_broker_client"))
    return client


@pytest.fixture
def broker_clients(request: pytest.FixtureRequest) -> BrokerClients:
    """A function that opens connected clients of any account, for Trio tests: `BrokerClients`."""
    clients: BrokerClients = request.getfixturevalue(_client_fixture(request, "_broker_clients"))
    return clients


# ---- What is behind it


@pytest.fixture
def _broker_wishes(request: pytest.FixtureRequest) -> Wishes:
    from trio_broker.sandbox.testing import Wishes  # noqa: PLC0415 - see the top

    wishes: dict[str, Any] = {}
    # They come from the nearest to the farthest: the test's own has the last word.
    for marker in reversed(list(request.node.iter_markers("broker"))):
        if marker.args:
            wrong = f"it takes keyword arguments alone, not {marker.args[0]!r}"
            raise _failure(request, f"@pytest.mark.broker: {wrong}")
        wishes.update(marker.kwargs)
    return _granted(request, lambda: Wishes.read(wishes))


@pytest.fixture
async def _broker_sandbox_in_trio(
    request: pytest.FixtureRequest, _broker_wishes: Wishes
) -> AsyncIterator[Sandbox]:
    from trio_broker.sandbox import open_sandbox  # noqa: PLC0415 - see the top

    async with open_sandbox(**_broker_wishes.options) as sandbox:
        _granted(request, lambda: _broker_wishes.begin_faults(sandbox))
        yield sandbox


@pytest.fixture
def _broker_sandbox_in_thread(
    request: pytest.FixtureRequest, _broker_wishes: Wishes
) -> Iterator[ThreadedSandbox]:
    from trio_broker.sandbox import open_threaded_sandbox  # noqa: PLC0415 - see the top

    with open_threaded_sandbox(**_broker_wishes.options) as sandbox:
        _granted(request, lambda: sandbox.do(_broker_wishes.begin_faults))
        yield sandbox


@pytest.fixture
async def _broker_clients_in_trio(broker_sandbox: Sandbox) -> AsyncIterator[BrokerClients]:
    from trio_broker.sandbox.testing import open_clients  # noqa: PLC0415 - see the top

    async with open_clients(broker_sandbox) as clients:
        yield clients


@pytest.fixture
async def _broker_client_in_trio(broker_clients: BrokerClients) -> BrokerWSClient:
    return await broker_clients()


# ---- Which of them a test gets


def _is_run_by_trio(request: pytest.FixtureRequest) -> bool:
    # pytest-trio's marker, which its trio_mode puts on every async test.
    if request.node.get_closest_marker("trio") is not None:
        if _hypothesis(request.node) is not None:
            raise _failure(
                request,
                "pytest-trio can't set fixtures up for each example of Hypothesis: open the "
                "sandbox in the test, with trio_broker.sandbox.open_sandbox",
            )
        return True
    # A plain test may use anyio's async fixtures: no event loop runs while it does.
    if "anyio_backend" in request.fixturenames and _is_async(request.node):
        return bool(request.getfixturevalue("anyio_backend_name") == "trio")
    return False


def _is_async(item: pytest.Item) -> bool:
    function = getattr(item, "obj", None)
    return inspect.iscoroutinefunction(getattr(_hypothesis(item), "inner_test", function))


def _hypothesis(item: pytest.Item) -> object:
    """What Hypothesis, which makes a plain function of every test, knows of it."""
    return getattr(getattr(item, "obj", None), "hypothesis", None)


def _client_fixture(request: pytest.FixtureRequest, name: str) -> str:
    """The fixture that has clients for this kind of test.

    Clients for other event loops belong here.
    """
    if not _is_run_by_trio(request):
        raise _failure(
            request,
            f"{name.removeprefix('_')} is about clients that live in Trio, and it isn't Trio that "
            "runs this test. Mark it `trio` for pytest-trio, or `anyio` for anyio's plugin with "
            "the backend 'trio'. Or use broker_sandbox alone: your program can connect to its url "
            "with its api_key and secret_key, and an asyncio test can open a client by "
            "trio_broker.aio.open_client(broker_sandbox.client())",
        )
    return f"{name}_in_trio"


# ---- Errors


def _granted(request: pytest.FixtureRequest, grant: Callable[[], _T]) -> _T:
    from trio_broker import ConfigurationError  # noqa: PLC0415 - see the top

    try:
        return grant()
    except ConfigurationError as error:
        refused = error
    # Outside of the handler, or pytest would tell how the message came about, too.
    raise _failure(request, f"@pytest.mark.broker: {refused}")


def _failure(request: pytest.FixtureRequest, message: str) -> BaseException:
    path, line, name = request.node.location
    return pytest.fail.Exception(f"{path}:{(line or 0) + 1}: {name}: {message}", pytrace=False)
