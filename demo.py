"""See it work on a small model, in minutes, on a CPU: python demo.py (demo.py --help)."""

from listwise_preference.demo.command import main
from lpoi import RECIPE

if __name__ == "__main__":
    main(RECIPE)
