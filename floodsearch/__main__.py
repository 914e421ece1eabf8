"""Run the command line with `python -m floodsearch`; a launch starts its workers by this file.

Started as a file it runs the package that it lies in, whatever the current folder and the environment say.
"""

import os.path
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder or this one: their files may be named like Python's own modules
    if not __package__:
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
        import floodsearch  # noqa: F401 - so that its other files are found where it lies

        sys.path.append(sys.path.pop(0))  # for processes of its own, if nothing else leads there
    from floodsearch.cli import main

    main()
