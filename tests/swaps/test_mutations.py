from __future__ import annotations

import pytest

from tests.swaps.mutations import MUTATIONS


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_fits_the_code(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        MUTATIONS[name](patch)
