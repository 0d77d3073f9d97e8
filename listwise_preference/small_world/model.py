"""Small Idefics2 and LLaVA checkpoints: the real classes with random weights, saved to disk in a second.

Everything the full-size checkpoints have is there (config, weights in safetensors, tokenizer, image processor, chat
template, generation config), so the programs load them by ``--model_name_or_path`` like any other model:

    python -m listwise_preference.small_world.model --family idefics2 --output runs/small-idefics2
    python lpoi.py --model_name_or_path runs/small-idefics2 --dtype float32 ...
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig

from listwise_preference import cli
from listwise_preference.models.families import FAMILIES

FamilyName = Literal["idefics2", "llava"]

# Enough English for the tokenizer to have learned common words; what it has not seen falls back to bytes.
SAMPLE_TEXTS = (
    "Describe the image in detail. What is in the picture? Is there a dog in the image? Yes. No.",
    "The image shows a person standing on the street next to a car and a tree.",
    "There is a cat on the chair, a cup on the table and a bird in the sky.",
    "A man is holding a red umbrella while a woman looks at a clock in the kitchen.",
)


def build_tokenizer(texts: Sequence[str], vocab_size: int, special_tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-fallback BPE tokenizer of the Llama and Mistral form, learned from ``texts``.

    A leading space is prepended, spaces are ``▁``, unknown characters become bytes, ``<s>`` opens every sequence.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", behavior="merged_with_next"),
            pre_tokenizers.Split(Regex("[.,:?]"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",  # as the released checkpoints have it: training must not rely on it
    )
    wrapped.add_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return wrapped


def _token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(token_id, int)
    return token_id


def build_small_model(
    family: FamilyName,
    *,
    image_size: int = 56,
    patch_size: int = 14,
    hidden_size: int = 64,
    layers: int = 2,
    vision_layers: int | None = None,
    image_tokens: int = 8,
    vocab_size: int = 600,
    tie_word_embeddings: bool = False,
    initializer_range: float = 0.1,
    texts: Sequence[str] = SAMPLE_TEXTS,
    seed: int = 0,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A small model of ``family`` with random weights, and its processor.

    Args:
        image_size: side of the square that the vision tower sees, a multiple of ``patch_size``. LLaVA makes
            ``(image_size / patch_size) ** 2`` image tokens of it: 336 gives the full model's 576. For Idefics2 it is
            the longest edge.
        hidden_size: width of the language model; the vision tower is 3/4 as wide.
        layers: of the language model.
        vision_layers: of the vision tower; one more than ``layers`` by default, since LLaVA reads its last but one.
        image_tokens: that Idefics2 makes of an image.
        texts: what the tokenizer's merges are learned from.
        initializer_range: the usual 0.02 leaves a model this narrow with next to equal logits for everything.
    """
    torch.manual_seed(seed)
    spread: dict[str, Any] = {"initializer_range": initializer_range}
    vision_sizes: dict[str, Any] = {
        "hidden_size": hidden_size * 3 // 4,
        "intermediate_size": hidden_size * 3 // 2,
        "num_hidden_layers": layers + 1 if vision_layers is None else vision_layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
        **spread,
    }
    text_sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **spread,
    }
    model: PreTrainedModel
    processor: ProcessorMixin
    if family == "idefics2":
        special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
        tokenizer = build_tokenizer(texts, vocab_size, special)
        processor = Idefics2Processor(
            Idefics2ImageProcessorPil(
                do_image_splitting=False,
                size={"longest_edge": image_size, "shortest_edge": image_size * 3 // 8},
            ),
            tokenizer,
            image_seq_len=image_tokens,
            chat_template=FAMILIES["idefics2"].chat_template,
        )
        model = Idefics2ForConditionalGeneration(
            Idefics2Config(
                vision_config=Idefics2VisionConfig(**vision_sizes),
                perceiver_config=Idefics2PerceiverConfig(
                    hidden_size=hidden_size,
                    resampler_n_latents=image_tokens,
                    resampler_depth=1,
                    resampler_n_heads=4,
                    resampler_head_dim=hidden_size // 4,
                    num_key_value_heads=2,
                    rms_norm_eps=1e-5,
                    **spread,
                ),
                text_config=MistralConfig(vocab_size=len(tokenizer), **text_sizes),
                image_token_id=_token_id(tokenizer, "<image>"),
                tie_word_embeddings=tie_word_embeddings,
                **spread,
            )
        )
        # They start as ones, so that all would say the same; trained checkpoints have long left that point.
        torch.nn.init.normal_(model.model.connector.perceiver_resampler.latents)
        end_tokens = [2, _token_id(tokenizer, "<end_of_utterance>")]
    elif family == "llava":
        tokenizer = build_tokenizer(texts, vocab_size, ["<image>", "<pad>"])
        tokenizer.pad_token = "<pad>"
        processor = LlavaProcessor(
            CLIPImageProcessorPil(
                size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
            ),
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=FAMILIES["llava"].chat_template,
        )
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(**vision_sizes, projection_dim=hidden_size),
                text_config=LlamaConfig(
                    vocab_size=len(tokenizer), **text_sizes | {"pad_token_id": _token_id(tokenizer, "<pad>")}
                ),
                image_token_index=_token_id(tokenizer, "<image>"),
                image_seq_length=(image_size // patch_size) ** 2,
                tie_word_embeddings=tie_word_embeddings,
                **spread,
            )
        )
        end_tokens = [2]
    else:
        raise ValueError(f"no small model of family {family!r}; there are idefics2 and llava")
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=end_tokens, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval(), processor


def save_small_model(folder: Path, family: FamilyName, **sizes: object) -> Path:
    """Build a small model and save it as a checkpoint folder; ``sizes`` as in :func:`build_small_model`."""
    model, processor = build_small_model(family, **sizes)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def main() -> None:
    """Write one small checkpoint."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--family", choices=("idefics2", "llava"), required=True, help="the model's classes")
    add("--output", type=cli.folder, required=True, help="folder of the checkpoint")
    add("--image_size", type=cli.count, default=56, help="pixels; 336 gives LLaVA's 576 image tokens")
    add("--hidden_size", type=cli.count, default=64, help="width of the language model")
    add("--layers", type=cli.count, default=2, help="of the language model")
    add("--seed", type=int, default=0, help="of the weights")
    arguments = vars(parser.parse_args())
    folder = save_small_model(arguments.pop("output"), arguments.pop("family"), **arguments)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
