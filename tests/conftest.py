"""What holds for all tests: they leave the user's own cache alone."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
