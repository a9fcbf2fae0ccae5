"""For all tests: a cache of their own, and Ctrl-C that works also where pytest was started in the background."""

import os
import signal

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers: one thread each, as they share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script, which ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIVOTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
