"""Many images: every one is attempted, what fails is named, and what is done is not done again."""

from coarse2fine.batch.run import analyze_folder
from coarse2fine.batch.summary import Batch

__all__ = ["Batch", "analyze_folder"]
