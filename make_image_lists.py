"""Make ranked image lists from images and preference pairs.

Finds the object that the chosen answer depends on, hides it step by step, verifies that
the answer fails without it, and writes a page to look at the result.

  python make_image_lists.py --pairs pairs.json --image_root data --output lists.jsonl --review review
  python make_image_lists.py --pairs pairs.json --image_root data --output lists.jsonl --exclude rejected.json
"""

from listwise_preference.image_lists.command import main

if __name__ == "__main__":
    main()
