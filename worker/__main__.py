"""`python -m worker`: the same as `imece-worker`."""

import sys

from worker.cli import main

sys.exit(main())
