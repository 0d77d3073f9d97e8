"""Train two steps on an export of make_image_lists.py with the program that it is for; not a part of pytest.

    python tests/external/load_exports.py trl|ms-swift|llama-factory [--work DIR]

Installs trl 1.16.0, ms-swift 4.6.0 or llamafactory 0.9.5, each with the versions that it asks for, in an environment
below --work (gigabytes; kept, so that a second run is quick), makes a small LLaVA and the export of the sample data,
and runs the real program on the CPU. Exits with 1 unless every row was kept and the first loss is ln 2, that of a
policy equal to its reference.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "trl": ["trl==1.16.0", "transformers==5.24.0", "peft==0.21.2", "torchvision"],
    "ms-swift": ["ms-swift==4.6.0", "torchvision"],
    "llama-factory": ["llamafactory==0.9.5", "torchvision"],
}
TRL = """
import json, sys
from datasets import Dataset, Image, List
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

rows, model, output = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
data = Dataset.from_list(rows).cast_column("images", List(Image()))
args = DPOConfig(output, max_steps=2, logging_steps=1, per_device_train_batch_size=2, use_cpu=True, bf16=False,
                 report_to="none", max_length=None, gradient_checkpointing=False)
trainer = DPOTrainer(model, args=args, train_dataset=data, peft_config=LoraConfig(target_modules="all-linear"))
print(f"rows kept: {len(trainer.train_dataset)}")
trainer.train()
print(f"first loss: {trainer.state.log_history[0]['loss']}")
"""


def main() -> int:
    """Install, export, train, check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=tuple(PACKAGES))
    parser.add_argument("--work", type=Path, help="folder for the environment (default: a temporary one)")
    options = parser.parse_args()
    work = (options.work or Path(tempfile.mkdtemp())).resolve()
    programs = _install(work / f"venv-{options.program}", PACKAGES[options.program])
    model, export = work / "llava", work / f"lists.{options.program}.json"
    _run(sys.executable, "-m", "listwise_preference.small_world.model", "--family", "llava", "--output", model)
    _run(
        *(sys.executable, "make_image_lists.py", "--detector", "annotations", "--verifier", "none"),
        *("--annotations", "data/sample/annotations.jsonl", "--pairs", "data/sample/pairs.json"),
        *("--image_root", "data/sample", "--output", work / "lists.jsonl", "--restart"),
        *("--write_pictures", work / "images", "--export", options.program),
    )
    rows = len(json.loads(export.read_text()))
    run = {"trl": _trl, "ms-swift": _ms_swift, "llama-factory": _llama_factory}[options.program]
    kept, loss = run(programs, model, export, work)
    print(f"{options.program}: {kept} of {rows} rows kept, first loss {loss:.4f} (ln 2 is {math.log(2):.4f})")
    return 0 if kept == rows and abs(loss - math.log(2)) < 1e-3 else 1


def _install(folder: Path, packages: list[str]) -> Path:
    """The folder of the environment's programs."""
    if not (folder / "bin" / "python").exists():
        _run(sys.executable, "-m", "venv", folder)
    _run(folder / "bin" / "pip", "install", "--quiet", *packages)
    return folder / "bin"


def _run(*command: str | Path) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, text=True, capture_output=True)
    said = finished.stdout + finished.stderr
    if finished.returncode:
        sys.exit(f"{command[0]} exited with {finished.returncode}\n{said[-4000:]}")
    return said


def _found(pattern: str, said: str) -> str:
    match = re.search(pattern, said)
    if match is None:
        sys.exit(f"no {pattern} in what the program said:\n{said[-4000:]}")
    return match[1]


def _trl(programs: Path, model: Path, export: Path, work: Path) -> tuple[int, float]:
    script = work / "run_trl.py"
    script.write_text(TRL)
    said = _run(programs / "python", script, export, model, work / "out-trl")
    return int(_found(r"rows kept: (\d+)", said)), float(_found(r"first loss: ([\d.]+)", said))


def _ms_swift(programs: Path, model: Path, export: Path, work: Path) -> tuple[int, float]:
    said = _run(
        *(programs / "swift", "rlhf", "--rlhf_type", "dpo", "--model", model, "--model_type", "llava1_5_hf"),
        *("--template", "llava1_5_hf", "--dataset", export, "--tuner_type", "lora", "--torch_dtype", "float32"),
        *("--max_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "2", "--max_length", "1024"),
        *("--gradient_accumulation_steps", "1", "--output_dir", work / "out-swift", "--report_to", "none"),
    )
    return int(_found(r"num_rows: (\d+)", said)), float(_found(r"'loss': '?([\d.]+)", said))


def _llama_factory(programs: Path, model: Path, export: Path, work: Path) -> tuple[int, float]:
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": export.name, "formatting": "sharegpt", "ranking": True, "columns": columns}
    (work / "dataset_info.json").write_text(json.dumps({"lpoi": entry}))
    settings = {
        **{"model_name_or_path": str(model), "template": "llava", "stage": "dpo", "finetuning_type": "lora"},
        **{"dataset": "lpoi", "dataset_dir": str(work), "cutoff_len": 1024, "do_train": True, "max_steps": 2},
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1, "use_cpu": True},
        **{"output_dir": str(work / "out-factory"), "report_to": "none"},
    }
    (work / "settings.yaml").write_text(json.dumps(settings))  # JSON is YAML
    said = _run(programs / "llamafactory-cli", "train", work / "settings.yaml")
    return int(_found(r"Num examples = ([\d,]+)", said)), float(_found(r"'loss': '?([\d.]+)", said))


if __name__ == "__main__":
    sys.exit(main())
