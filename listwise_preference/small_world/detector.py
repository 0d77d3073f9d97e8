"""A small Grounding DINO checkpoint: the real class with random weights and a tokenizer of its own, saved in a second.

It finds nothing in particular, but the program loads and runs it like the full one:

    python -m listwise_preference.small_world.detector --output runs/small-grounding-dino
    python make_image_lists.py --detector_model runs/small-grounding-dino --box_threshold 0.2 ...
"""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SwinConfig,
)

from listwise_preference import cli

# Marks and words have these places in BERT's vocabulary; Grounding DINO knows [CLS], [SEP], "." and "?" by them.
_PLACES = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
_WORDS = ("cat", "dog", "man", "woman", "person", "traffic", "light", "red", "umbrella", "table", "cup", "bird", "car")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def build_small_detector(
    *, shortest_edge: int = 64, longest_edge: int = 96, queries: int = 12, seed: int = 0
) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """A small Grounding DINO with random weights, and its processor.

    Args:
        shortest_edge: images are resized to this shorter side, but
        longest_edge: never beyond this longer side.
        queries: boxes that the model returns for an image.
    """
    torch.manual_seed(seed)
    vocabulary = _vocabulary()
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    image_processor = GroundingDinoImageProcessorPil(
        size={"shortest_edge": shortest_edge, "longest_edge": longest_edge}
    )
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[2, 2, 2, 2],
            window_size=4,
            out_indices=[2, 3, 4],  # type: ignore[call-arg]  # taken by the base class
        ),
        text_config=BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=queries,
        max_text_len=48,
        # The usual 0.02 leaves a model this narrow with the same box for everything.
        init_std=0.2,
    )
    model = GroundingDinoForObjectDetection(config).eval()
    return model, GroundingDinoProcessor(image_processor, tokenizer)


def _vocabulary() -> dict[str, int]:
    """Words, single letters and their continuations; places that nothing takes hold [unused]."""
    words = iter([*_WORDS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)])
    taken = {place: mark for mark, place in _PLACES.items()}
    tokens = [taken[place] if place in taken else next(words, f"[unused{place}]") for place in range(1030)]
    return {token: place for place, token in enumerate(tokens)}


def save_small_detector(folder: Path, *, shortest_edge: int = 64, longest_edge: int = 96, seed: int = 0) -> Path:
    """Build a small detector and save it as a checkpoint folder; arguments as in :func:`build_small_detector`."""
    model, processor = build_small_detector(shortest_edge=shortest_edge, longest_edge=longest_edge, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def main() -> None:
    """Write one small detector."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--output", type=cli.folder, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    arguments = parser.parse_args()
    print(f"wrote {save_small_detector(arguments.output, seed=arguments.seed)}")


if __name__ == "__main__":
    main()
