"""Run the command line with `python -m floodsearch`."""

from floodsearch.cli import main

main()
