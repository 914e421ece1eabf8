import runpy
import sys
from pathlib import Path


def train(run):
    sys.argv[1:] = []
    runpy.run_path(str(Path(__file__).with_name("char_gpt.py")), init_globals={"run": run})
