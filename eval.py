"""The marking command: python eval.py --weights MODEL.pt --data_root DATA --tasks all"""

import sys

from mtl_utils.cli.evaluate import evaluate_command

if __name__ == "__main__":
    sys.exit(evaluate_command())
