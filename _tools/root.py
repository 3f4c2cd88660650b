"""Puts the checkout's folder on the import path: the programs here are started by their own path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
