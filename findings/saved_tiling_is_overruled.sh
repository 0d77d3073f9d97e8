#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, CPU. A setting of the image processor, do_pan_and_scan on (Gemma 3) or crop_to_patches
# off (Aya Vision; InternVL's class is the same), is put on processor.image_processor, and the processor is saved. One
# expects the loaded processor to obey it. It stands in the saved file and on the loaded image processor, which obeys it
# when called by itself; the processor calls it with the value of its own class, without a word. Given to from_pretrained
# the same setting is obeyed, and after saving too: it goes to the tokenizer, and is read from tokenizer_config.json.
# Seen (images that a photograph of 1280 x 480 pixels becomes, saved and loaded: by the image processor, by the processor;
# given to from_pretrained, then saved and loaded): gemma3 4 1 4 4, aya_vision 1 11 1 1
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 pillow
cd "$folder"
cat > run.py <<'PY'
import sys
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AyaVisionProcessor, Gemma3ImageProcessorPil, Gemma3Processor, GotOcr2ImageProcessorPil
from transformers import PreTrainedTokenizerFast

photograph = Image.new("RGB", (1280, 480))
words = ["<pad>", "<image>", "<boi>", "<eoi>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>"]
words += ["<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 13)), "\n\n"]


def tokenizer():
    vocabulary = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<pad>"))
    vocabulary.add_special_tokens(words)
    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", extra_special_tokens=named)


def images(made):
    return len(made["pixel_values"])


found = {}
size = {"height": 56, "width": 56}
for name, own, image_processor, setting in (
    ("gemma3", Gemma3Processor, Gemma3ImageProcessorPil, {"do_pan_and_scan": True}),
    ("aya_vision", AyaVisionProcessor, GotOcr2ImageProcessorPil, {"crop_to_patches": False}),
):
    one = {"pan_and_scan_min_crop_size": 256, "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2}
    one = one if name == "gemma3" else {}
    processor = own(image_processor(size=size, **one), tokenizer())
    ((attribute, value),) = setting.items()
    setattr(processor.image_processor, attribute, value)
    processor.save_pretrained(name)
    loaded = own.from_pretrained(name)
    assert getattr(loaded.image_processor, attribute) is value
    told = own.from_pretrained(name, **setting)
    told.save_pretrained(f"{name}_told")
    assert f'"{attribute}"' in Path(f"{name}_told", "tokenizer_config.json").read_text()
    again = own.from_pretrained(f"{name}_told")
    given = {"text": ["<boi>" if name == "gemma3" else "<image>"], "images": [[photograph]], "return_tensors": "pt"}
    found[name] = (images(loaded.image_processor([photograph])), *(images(made(**given)) for made in (loaded, told, again)))
print(", ".join(f"{name} {' '.join(map(str, counts))}" for name, counts in found.items()))
sys.exit(found != {"gemma3": (4, 1, 4, 4), "aya_vision": (1, 11, 1, 1)})
PY
venv/bin/python run.py 2> errors.txt || { tail -3 errors.txt; exit 1; }
