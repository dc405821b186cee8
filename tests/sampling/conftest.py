"""The generators that tests of sampling share."""

from __future__ import annotations

import pytest

from spheregen.family.sphere_encoder.network import SphereAutoencoder
from spheregen.protocol import SphereGenerator
from tests.sampling.test_sampling import KINDS, model_of


@pytest.fixture(scope="package")
def model() -> SphereAutoencoder:
    """One with 3 classes."""
    return model_of()


@pytest.fixture(scope="package", params=KINDS)
def either(request: pytest.FixtureRequest) -> SphereGenerator:
    """One of each kind, with 3 classes."""
    return KINDS[request.param](3)
