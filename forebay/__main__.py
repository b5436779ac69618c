"""`python -m forebay`: the `forebay` command."""

from forebay.cli.main import main

main()
