import secrets

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random numbers; the seed is printed with a failure."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def identifiers_hidden():
    """A test that shows identifiers must not change the next one."""
    from medseq.io.privacy import show_identifiers

    show_identifiers(False)
    yield
    show_identifiers(False)
