"""Generate a model's responses to a benchmark's questions, with or without an adapter, in the form that score.py reads.

    python generate.py --model_name_or_path llava-hf/llava-1.5-7b-hf --adapter checkpoints/llava-1.5-7b-lpoi/final \\
        --benchmark pope --questions coco_pope_random.json --image_root val2014 --output runs/pope-random.jsonl
    accelerate launch generate.py ...                                   # on all GPUs

The same command resumes a run that was stopped.
"""

from listwise_preference.generation.command import main

if __name__ == "__main__":
    main({})
