"""Make ranked image lists from pictures and preference pairs: find the object that the chosen answer depends on, hide
it step by step, verify that the answer fails without it, and look at the result.

python make_image_lists.py --pairs pairs.json --image_root data --output lists.jsonl --review review/
python make_image_lists.py --pairs pairs.json --image_root data --output lists.jsonl --exclude rejected.json
"""

from listwise_preference.image_lists.command import main

if __name__ == "__main__":
    main()
