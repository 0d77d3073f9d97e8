"""A small model's responses to a benchmark's questions, by generate.py."""

from pathlib import Path

from listwise_preference.generation.command import main


def generate_responses(
    checkpoint: Path, benchmark: str, questions: Path, image_root: Path, output: Path, *more: str
) -> Path:
    options = ["--model_name_or_path", checkpoint, "--adapter", "none", "--dtype", "float32", "--benchmark", benchmark,
               "--questions", questions, "--image_root", image_root, "--output", output,
               "--max_new_tokens", "6", "--max_new_tokens_yes_no", "6", *more]  # fmt: skip
    main({}, [*map(str, options)])
    return output
