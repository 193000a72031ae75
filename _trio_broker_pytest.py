"""The pytest plugin of trio-broker: fixtures with a sandbox broker and its clients.

The plugin is outside of the package. It imports neither the package nor Trio until a test uses one
of its fixtures, so other test runs aren't slowed down.

**Where a sandbox runs.** In a Trio test, the sandbox is in the test's own run, so that it uses the
test's clock, for example a `MockClock`. Any other test gets a sandbox in a thread. A pytest fixture
can't be async for some tests only. So ``broker_sandbox`` chooses between two fixtures: an async
one, which pytest-trio or anyio's plugin runs, and a plain one. pytest-trio returns a placeholder
instead of the sandbox, and replaces it in the arguments of tests and fixtures. Therefore everything
that uses the sandbox must name ``broker_sandbox`` as an argument. This also allows a test suite to
replace the fixture with its own.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio_broker import BrokerWSClient
    from trio_broker.sandbox import BrokerClients, Sandbox, ThreadedSandbox
    from trio_broker.sandbox.testing import MarkerOptions

_T = TypeVar("_T")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "broker(seed=0, faults=[...], **settings): configure the sandbox of trio-broker's "
        "fixtures: the keyword arguments of trio_broker.sandbox.open_sandbox, and initial faults "
        "by name: 'stop_pushing', or ('swallow', {'op': 'swap', 'times': 1})",
    )


# ---- Public fixtures


@pytest.fixture
def broker_sandbox(request: pytest.FixtureRequest) -> Sandbox | ThreadedSandbox:
    """A new sandbox broker, configured by the marker `broker`; the default seed is 0.

    It is a `trio_broker.sandbox.Sandbox` in the test's own run for a Trio test, and a
    `trio_broker.sandbox.ThreadedSandbox` for any other test.
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


# ---- Their implementation


@pytest.fixture
def _broker_options(request: pytest.FixtureRequest) -> MarkerOptions:
    from trio_broker.sandbox.testing import MarkerOptions  # noqa: PLC0415 - see the top

    options: dict[str, Any] = {}
    # `iter_markers` begins with the marker nearest to the test, which has to win.
    for marker in reversed(list(request.node.iter_markers("broker"))):
        if marker.args:
            wrong = f"it takes only keyword arguments, not {marker.args[0]!r}"
            raise _failure(request, f"@pytest.mark.broker: {wrong}")
        options.update(marker.kwargs)
    return _checked(request, lambda: MarkerOptions.read(options))


@pytest.fixture
async def _broker_sandbox_in_trio(
    request: pytest.FixtureRequest, _broker_options: MarkerOptions
) -> AsyncIterator[Sandbox]:
    from trio_broker.sandbox import open_sandbox  # noqa: PLC0415 - see the top

    async with open_sandbox(**_broker_options.options) as sandbox:
        _checked(request, lambda: _broker_options.start_faults(sandbox))
        yield sandbox


@pytest.fixture
def _broker_sandbox_in_thread(
    request: pytest.FixtureRequest, _broker_options: MarkerOptions
) -> Iterator[ThreadedSandbox]:
    from trio_broker.sandbox import open_threaded_sandbox  # noqa: PLC0415 - see the top

    with open_threaded_sandbox(**_broker_options.options) as sandbox:
        _checked(request, lambda: sandbox.do(_broker_options.start_faults))
        yield sandbox


@pytest.fixture
async def _broker_clients_in_trio(broker_sandbox: Sandbox) -> AsyncIterator[BrokerClients]:
    from trio_broker.sandbox.testing import open_clients  # noqa: PLC0415 - see the top

    async with open_clients(broker_sandbox) as clients:
        yield clients


@pytest.fixture
async def _broker_client_in_trio(broker_clients: BrokerClients) -> BrokerWSClient:
    return await broker_clients()


# ---- Choosing the fixture for a test


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
    # A plain test may use anyio's async fixtures too, but no event loop runs during the test.
    if "anyio_backend" in request.fixturenames and _is_async(request.node):
        return bool(request.getfixturevalue("anyio_backend_name") == "trio")
    return False


def _is_async(item: pytest.Item) -> bool:
    function = getattr(item, "obj", None)
    return inspect.iscoroutinefunction(getattr(_hypothesis(item), "inner_test", function))


def _hypothesis(item: pytest.Item) -> object:
    """Hypothesis's attribute of a test, which it wraps in a plain function; None for others."""
    return getattr(getattr(item, "obj", None), "hypothesis", None)


def _client_fixture(request: pytest.FixtureRequest, name: str) -> str:
    """The name of the fixture with clients for this kind of test."""
    if not _is_run_by_trio(request):
        raise _failure(
            request,
            f"{name.removeprefix('_')} needs Trio, and this test isn't run by Trio. Mark it `trio` "
            "for pytest-trio, or `anyio` for anyio's plugin with the backend 'trio'. Or use only "
            "broker_sandbox: your program can connect to its url with its api_key and secret_key, "
            "and an asyncio test can open a client with "
            "trio_broker.aio.open_client(broker_sandbox.client())",
        )
    return f"{name}_in_trio"


# ---- Errors


def _checked(request: pytest.FixtureRequest, call: Callable[[], _T]) -> _T:
    """Call a function, and report a `ConfigurationError` as a failure of the marker."""
    from trio_broker import ConfigurationError  # noqa: PLC0415 - see the top

    try:
        return call()
    except ConfigurationError as error:
        refused = error
    # Outside of the handler, because pytest would also print the handled exception.
    raise _failure(request, f"@pytest.mark.broker: {refused}")


def _failure(request: pytest.FixtureRequest, message: str) -> BaseException:
    path, line, name = request.node.location
    return pytest.fail.Exception(f"{path}:{(line or 0) + 1}: {name}: {message}", pytrace=False)
