"""`python -m producer`: the same as `imece`."""

from producer.cli import main

main()
