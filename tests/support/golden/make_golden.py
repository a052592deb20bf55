"""Write what PyTorch computes for `cases`, for machines without PyTorch: *.npz and versions.json beside this file.

    python tests/support/golden/make_golden.py            write them anew
    python tests/support/golden/make_golden.py --check    write nothing; say by how much they would change, exit 1 if
                                                          by more than rounding

Needs PyTorch: pip install -e '.[parity]'.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1]))  # tests/, to run it as a script

from support.golden import cases  # noqa: E402

# What another processor, another number of threads or another PyTorch may change; a tenth of the tests' tolerances or
# less.
ROUNDING = {"logits": 1e-6, "gradients": 1e-5, "batch_norms": 1e-6, "descents": 1e-6, "rates": 1e-7, "losses": 1e-4}
ROUNDING_IN_FLOAT64 = 1e-7


def golden_path(quantity: str) -> Path:
    return FOLDER / f"{quantity}.npz"


def prefix(arguments: tuple[object, ...]) -> str:
    """Before the name of each array that a call of the oracle with these arguments gives."""
    return "".join(f"{a}: " for a in arguments)


def compute(quantity: str) -> dict[str, np.ndarray]:
    """What the file of a quantity holds."""
    from support.golden import oracle

    found = {}
    for arguments in cases.QUANTITIES[quantity]:
        arrays = cases.digest(getattr(oracle, quantity)(*arguments))
        found |= {prefix(arguments) + name: array for name, array in arrays.items()}
    return found


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    failed = False
    for quantity in cases.QUANTITIES:
        arrays = compute(quantity)
        if not check:
            np.savez_compressed(golden_path(quantity), **arrays)  # type: ignore[arg-type]
            print(f"{quantity}: {len(arrays)} arrays, {golden_path(quantity).stat().st_size:,} bytes")
            continue
        with np.load(golden_path(quantity)) as kept:
            errors = {name: cases.error(arrays[name], kept[name]) for name in arrays.keys() & set(kept.files)}
            differing = sorted(arrays.keys() ^ set(kept.files))
        allowed = {name: min(ROUNDING[quantity], ROUNDING_IN_FLOAT64 if "float64" in name else 1) for name in errors}
        worst = max(errors, key=lambda name: errors[name] / allowed[name])
        ok = errors[worst] <= allowed[worst] and not differing
        print(
            f"{quantity}: largest change {errors[worst]:.1e} of {allowed[worst]:.0e} ({worst})"
            + "".join(f"\n  only in one of them: {name}" for name in differing)
            + ("" if ok else "  FAILED")
        )
        failed |= not ok
    if not check:
        versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
        (FOLDER / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
