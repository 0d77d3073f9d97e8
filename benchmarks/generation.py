"""Questions answered per second, against a plain loop of one question at a time on the same model.

    python benchmarks/generation.py                                     # CPU, about a minute
    python benchmarks/generation.py --family idefics2

AMBER's mix on photographs of data/sample: one description and 14 yes/no questions on each image. The model has random
weights and no reason to end a response, so both ways generate the same numbers of tokens; that real responses to yes/no
questions end early, or are stopped early, is not counted. Both ways start from the image files and end with texts,
which are compared.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone without installing

# fmt: off
THINGS = ("person", "dog", "cat", "tree", "car", "boat", "bird", "cup", "chair", "table", "cloud", "river", "house",
          "bottle")
# fmt: on


def main() -> None:
    """Run both ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("llava", "idefics2"), default="llava")
    parser.add_argument("--images", type=int, default=4, help="at most 12")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--description_tokens", type=int, default=64)
    parser.add_argument("--yes_no_tokens", type=int, default=4)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1, help="of torch; with more, other work on the machine shows")
    arguments = parser.parse_args()

    import torch

    from listwise_preference.data.ranked_images import open_image
    from listwise_preference.generation.engine import Decoding, ResponseGenerator, plan
    from listwise_preference.generation.questions import Question
    from listwise_preference.models.adapters import add_adapter, merge
    from listwise_preference.small_world.model import build_small_model

    torch.set_num_threads(arguments.threads)
    images = sorted((ROOT / "data" / "sample" / "images").glob("*.jpg"))[: arguments.images]
    asked = [("Describe this image.", image, False) for image in images]
    asked += [(f"Is there a {thing} in this image?", image, True) for image in images for thing in THINGS]
    questions = [Question(number, *question, {}) for number, question in enumerate(asked, start=1)]
    model, processor = build_small_model(
        arguments.family, image_size=336, hidden_size=arguments.hidden_size, layers=arguments.layers
    )
    model.generation_config.eos_token_id = None
    budgets = {False: arguments.description_tokens, True: arguments.yes_no_tokens}
    sizes = {"max_new_tokens": budgets[False], "max_new_tokens_yes_no": budgets[True]}

    def generator(batch_size: int, *, share_prefix: bool) -> ResponseGenerator:
        made = ResponseGenerator(model, processor, Decoding(batch_size=batch_size, share_prefix=share_prefix, **sizes))
        made.end_ids = []
        return made

    def ours(batch_size: int, *, share_prefix: bool) -> dict[int, str]:
        works = generator(batch_size, share_prefix=share_prefix)
        return {
            response.question.number: response.text
            for group in plan(questions, batch_size)
            for responses in works.respond(works.prepare(group))
            for response in responses
        }

    def loop() -> dict[int, str]:
        chat = generator(1, share_prefix=False).chat
        texts = {}
        for question in questions:
            assert question.image is not None  # AMBER asks none without
            inputs = processor(
                text=chat.prompt_text(question.text), images=open_image(question.image), return_tensors="pt"
            )
            with torch.inference_mode():
                made = model.generate(  # type: ignore[operator]
                    **inputs, max_new_tokens=budgets[question.yes_no], do_sample=False
                )
            new = made[0, inputs["input_ids"].shape[1] :]
            texts[question.number] = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        return texts

    def with_adapter(merged: bool) -> dict[int, str]:
        """With an adapter of zeros, which changes no text."""
        if not merged:
            adapters.append(add_adapter(model, r=8, alpha=8, dropout=0.0, target_modules=["all-linear"]))
        else:
            assert merge(adapters[0])
        return ours(arguments.batch_size, share_prefix=True)

    adapters: list[Any] = []
    ways: dict[str, Callable[[], dict[int, str]]] = {
        "one question at a time": loop,
        "batched, nothing shared but the images' features": lambda: ours(arguments.batch_size, share_prefix=False),
        "batched, beginning shared": lambda: ours(arguments.batch_size, share_prefix=True),
        "the same with an adapter beside the weights": lambda: with_adapter(merged=False),
        "the same with the adapter merged": lambda: with_adapter(merged=True),
    }
    parameters = sum(parameter.numel() for parameter in model.parameters())
    prompt = generator(1, share_prefix=False).prepare(questions[:1]).rows[0].ids
    print(
        f"{arguments.family}, {parameters:,} parameters, {prompt.count(model.config.image_token_id)} image tokens,"
        f" float32, CPU threads: {torch.get_num_threads()}; {len(questions)} questions on {len(images)} images,"
        f" {budgets[False]} tokens a description, {budgets[True]} a yes/no response, batches of {arguments.batch_size}"
    )
    print("| way | s | CPU s | questions a second | of the loop |")
    print("|---|---|---|---|---|")
    first: tuple[float, dict[int, str]] | None = None
    for name, way in ways.items():
        wall, cpu = time.perf_counter(), time.process_time()
        texts = way()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        first = first or (wall, texts)
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {len(questions) / wall:.2f} | {first[0] / wall:.2f} |", flush=True)
        same = sum(texts[number] == text for number, text in first[1].items())
        if same < len(questions):
            print(f"{len(questions) - same} of {len(questions)} texts differ from the loop's", file=sys.stderr)


if __name__ == "__main__":
    main()
