"""python -m listwise_preference.data FILE... --to pairs.jsonl"""

from listwise_preference.data.convert import main

if __name__ == "__main__":
    main()
