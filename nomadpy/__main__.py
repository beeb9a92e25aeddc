"""`python -m nomadpy`: the command line."""

import sys

from nomadpy.cli.main import main

sys.exit(main())
