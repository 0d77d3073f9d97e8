"""Make preference pairs from a model's own responses, with a reason for each.

Samples several responses to each image and prompt, looks for the objects that they name in the image, by one or two
detectors or in annotations, and takes the response that names the fewest absent ones against the one that names the
most, of about the same length and naming as many objects.

  python make_pairs.py --model_name_or_path MODEL --prompts prompts.jsonl --image_root data --output pairs.jsonl
  python make_pairs.py ... --detector annotations --annotations boxes.jsonl --review review

The same command resumes a run that was stopped.
"""

from listwise_preference.pair_making.command import main

if __name__ == "__main__":
    main()
