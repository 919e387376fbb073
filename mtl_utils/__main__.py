"""python -m mtl_utils COMMAND: the commands are in cli/."""

import sys

from mtl_utils.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
