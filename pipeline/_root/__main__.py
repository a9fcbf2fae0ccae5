"""`python -m pivotune` is the `pivotune` command."""

from pivotune.pipeline.cli import main

main()
