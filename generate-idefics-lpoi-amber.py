"""AMBER's questions to Idefics2-8B with the LPOI adapter: python generate-idefics-lpoi-amber.py [--option value ...]

Needs a clone of github.com/junyangwang0410/AMBER as data/AMBER, and the images that its README links to as
data/AMBER/image/AMBER_1.jpg ... AMBER_1004.jpg. For other places give --questions and --image_root. Then:

    python score.py amber runs/idefics2-8b-lpoi-list5-10k-amber.json --data data/AMBER
"""

from listwise_preference.generation.command import main

# Sources: [R] the authors' release, [D] this project.
RECIPE = {
    "model_name_or_path": "HuggingFaceM4/idefics2-8b",
    "adapter": "checkpoints/idefics2-8b-lpoi-list5-10k/final",  # as lpoi.py leaves it; none: the base model
    "benchmark": "amber",
    "questions": "data/AMBER/data/query/query_all.json",
    "image_root": "data/AMBER/image",
    "output": "runs/idefics2-8b-lpoi-list5-10k-amber.json",
    "dtype": "bfloat16",  # [R]
    "temperature": 0.0,  # greedy
    "max_new_tokens": 512,  # [D] far above a description's length; how many reach it is reported
    "max_new_tokens_yes_no": 32,  # [D] enough for the first sentence
    "batch_size": 16,  # cost, not results
}

if __name__ == "__main__":
    main(RECIPE)
