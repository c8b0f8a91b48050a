"""What every test gets: the asyncio backend of anyio, and a guard against calls that block the event loop."""

from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run async tests on asyncio, the loop the product runs on."""
    return "asyncio"


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fail a test that blocks the event loop (invariant no-block)."""
    with blockbuster_ctx() as guard:
        yield guard
