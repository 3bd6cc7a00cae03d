"""``python -m polyptych`` is the command line."""

import sys

from polyptych.cli import main

sys.exit(main())
