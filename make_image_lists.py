"""Make ranked image lists from images and preference pairs.

Finds the object that the chosen response depends on, verifies that the response is no longer right when the object is
masked, and writes a page to look at the lists.

  python make_image_lists.py --pairs pairs.json --image_root data --output lists.jsonl --review review
  python make_image_lists.py --pairs pairs.json --image_root data --output lists.jsonl --exclude rejected.json
"""

from listwise_preference.image_lists.command import main

if __name__ == "__main__":
    main()
