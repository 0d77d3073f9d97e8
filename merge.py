"""Merge an adapter into its base model, and prove what was saved: python merge.py --adapter DIR --output DIR"""

from listwise_preference.merging.command import main

if __name__ == "__main__":
    main()
