"""`python -m osmose.cli`: the command line without its script, for launchers such as torchrun."""

import sys

from osmose.cli import main

sys.exit(main())
