"""Train Qwen3-VL-8B by LPOI on one 48 GB GPU: python lpoi_qwen3_vl.py [--help] [--option value ...]"""

from listwise_preference.training.command import main

# Every number that can change a result. Sources: [A] the paper's algorithm, [R] the authors' release, for Idefics2-8B
# where its models differ, [Q] the report on Qwen2.5-VL (arXiv:2502.13923), 2.3.4, [D] this project. Prompts, end
# tokens and the size of images are the checkpoint's own. Nothing of this size has been trained by this recipe yet.
RECIPE = {
    "model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct",
    "output_dir": "checkpoints/qwen3-vl-8b-lpoi-list5-10k",
    # data: the release's files, unpacked below data/ as its README says [R]
    "pairs": "data/sample_10k_llava.json",
    "image_root": ".",
    "ranked_image_folders": [
        "data/images",
        *(f"data/ours_cmask_until_list5/ours_cmask_until{percent}" for percent in (25, 50, 75, 100)),
    ],
    "max_completion_length": 384,  # [R] cut there when a sample passes 512; here always, and prompts never
    # objective [A]: DPO + anchor + Plackett-Luce over the images, weights 1 1 1
    "objective": "lpoi",
    "beta": 0.1,  # [R]
    "anchor_delta": 0.0,  # [R]
    "list_size": 5,  # [A], for lists drawn from boxes (--image_lists)
    "visual_prompt": "ellipse",  # [A]
    "grow": "longer_side",  # [D] agrees with the paper's two figures
    # adapter [R]: peft's defaults of the time
    "lora_r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["all-linear"],
    "freeze_vision_tower": True,  # [Q] keeps it frozen in the DPO of Qwen2.5-VL; for Qwen3-VL [D]
    # optimization [R], with the Trainer's defaults of the time written out
    "do_train": True,
    "num_train_epochs": 1,  # [Q] uses each sample of its DPO once; [R] takes 3 for Idefics2
    "learning_rate": 5e-6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 64,
    "seed": 42,
    "dtype": "bfloat16",  # [D] as the checkpoint is saved; the adapter's master weights are float32
    # cost, not results
    "precompute_ref_log_probs": True,
    "activation_checkpointing": "auto",
    "per_device_eval_batch_size": 1,
    "dataloader_num_workers": 4,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_strategy": "epoch",
    "resume_from_checkpoint": "auto",  # the same command goes on where it was stopped
}

if __name__ == "__main__":
    main(RECIPE)
