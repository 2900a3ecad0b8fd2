"""Where tests find what is not code."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Trained networks and published logs with known answers; tests that need them skip where it is absent.
GOLDEN = ROOT.parent / "shared" / "golden"
#: The reference checkpoints of the digits.
REFERENCE = ROOT / "artifacts" / "reference" / "digits"
