"""Import this before anything of tests/support: it puts tests/ on the path. The one place where benchmarks reach into
the tests: for PyTorch's side of the parity tests (`support.golden`) and the training process that is watched from
outside (`support.watched`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
