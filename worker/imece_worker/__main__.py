"""`python -m imece_worker`: the same as `imece-worker`."""

import sys

from imece_worker.cli import main

sys.exit(main())
