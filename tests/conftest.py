"""What holds for all tests: they leave the user's own cache alone, and Ctrl-C is heard however pytest was begun."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers: one thread each, or they take the cores from one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a script, where Ctrl-C is none
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
