"""`python -m pivotune` is the `pivotune` command."""

from pivotune.pipeline.entry import main

main()
