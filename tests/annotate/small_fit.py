"""The worker of the page's fit, with the smaller nets, batches and crops of tests."""

from __future__ import annotations

import sys

from coarse2fine.annotate import fit_worker
from tests.fitting.discs import smaller

if __name__ == "__main__":
    with smaller(slim=True):
        sys.exit(fit_worker.main())
