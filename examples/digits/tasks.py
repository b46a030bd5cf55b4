# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Writes the held-out pages and the questions about them as a local task `digit_pages` of lmms-eval and of lm-eval:

    python -m examples.digits.tasks --output_dir digit_tasks [--num_pages 360] [--seed 1]
    lmms-eval --model jvlm --model_args pretrained=examples/digits/model \\
        --tasks digit_pages --include_path digit_tasks/lmms_eval --batch_size 24
    python -m jvlm.evaluation.lm_eval --model hf-multimodal --apply_chat_template \\
        --model_args pretrained=examples/digits/model,dtype=float32 \\
        --tasks digit_pages --include_path digit_tasks/lm_eval --batch_size 24

Rows, prompts and limits are those of `examples.digits.evaluate`, and `exact_match` is its rate of exact answers. Both
harnesses need `pip install -e '.[evaluate,demo]'`.
"""

import argparse
from pathlib import Path

import datasets

from .evaluate import rows_of
from .pages import MAX_DIGITS, held_out_pages


TASKS = {
    "lmms_eval": """task: digit_pages
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: image
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
""",
    "lm_eval": """task: digit_pages
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_image:
  - image
doc_to_text: "<image>{{{{question}}}}"
doc_to_target: answer
generation_kwargs:
  max_gen_toks: {max_new_tokens}
  do_sample: false
  until: []
filter_list:
  - name: stripped
    filter:
      - function: remove_whitespace
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
""",
}


def write_tasks(folder: Path, num_pages: int = 360, seed: int = 1) -> None:
    """
    Writes the rows to `digit_pages.parquet` and a task file into a folder for each harness.

    Args:
        folder (`Path`): made if needed. The task files name it by its absolute path.
        num_pages, seed (`int`): the pages, as for `examples.digits.evaluate`.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(held_out_pages(num_pages, seed))
    data = datasets.Dataset.from_dict(
        {
            "image": [page.image for page, _ in rows],
            "question": [question for _, question in rows],
            "answer": [page.answer(question) for page, question in rows],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
        ),
    )
    data.to_parquet(folder / "digit_pages.parquet")
    for harness, text in TASKS.items():
        path = folder / harness / "digit_pages.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(data=folder / "digit_pages.parquet", max_new_tokens=4 + 2 * MAX_DIGITS))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Writes the digit pages as a local task of lmms-eval and lm-eval.")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--num_pages", default=360, type=int)
    parser.add_argument("--seed", default=1, type=int, help="seed of the pages")
    args = parser.parse_args(argv)
    write_tasks(args.output_dir, args.num_pages, args.seed)


if __name__ == "__main__":
    main()
