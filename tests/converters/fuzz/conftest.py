import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `crash` and `fuzz` can be imported
collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]  # fork, limits of memory, /proc
