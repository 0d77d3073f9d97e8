"""docs/serving.md: a merged model is served by `transformers serve` and answers as generate.py does."""

import base64
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import torch

from listwise_preference.generation.ask import Asked
from listwise_preference.generation.engine import Decoding
from listwise_preference.models.loading import load_base_model, load_processor

from .conftest import SAMPLE
from .test_merge import merge, save_adapter

QUESTION = "What is in the image?"


@pytest.mark.slow
def test_the_merged_model_answers_an_openai_request_with_an_image(
    small_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = small_checkpoints["llava"]
    photo = SAMPLE / "images" / "coffee.jpg"
    merged = tmp_path / "merged"
    merge(save_adapter(checkpoint, tmp_path / "adapter"), merged, "--dtype", "float32")
    model = load_base_model(str(merged), dtype=torch.float32).eval()
    decoding = Decoding(max_new_tokens=12)
    expected = Asked(model, None, load_processor(str(merged)), photo, QUESTION, decoding).policies[0].response

    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", merged, "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = []
            for line in server.stderr:
                said.append(line)
                if "running on" in line:
                    break
            else:
                raise AssertionError("".join(said))
            address = next(word for word in line.split() if word.startswith("http://"))
            image = f"data:image/jpeg;base64,{base64.b64encode(photo.read_bytes()).decode()}"
            content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": QUESTION}]
            request = {
                "model": str(merged),
                "messages": [{"role": "user", "content": content}],
                "max_tokens": 12,
            }
            answer = httpx2.post(f"{address}/v1/chat/completions", json=request, timeout=120)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"].strip() == expected != ""
        finally:
            server.terminate()
