"""`python -m pivotune` is the `pivotune` command."""

from pivotune.pipeline.cli.entry import main

main()
