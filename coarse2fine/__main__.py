"""``python -m coarse2fine``: the command, where its script is not on the path."""

from coarse2fine.cli.main import main

raise SystemExit(main())
