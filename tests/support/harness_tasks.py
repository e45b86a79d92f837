"""Tasks of lm-evaluation-harness on a few documents, and their numbers computed by hand."""

import json

DOCUMENTS = [
    {"question": "who wrote the red book", "choices": ["anna", "bo", "the sea"], "label": 0},
    {"question": "who wrote it", "choices": ["carl", "the blue tree", "a book"], "label": 1},
    {"question": "was it the blue tree", "choices": ["it was", "is it by the sea"], "label": 0},
    {"question": "is it in the sea", "choices": ["it is", "carl wrote it"], "label": 1},
    {"question": "the sea", "choices": ["is blue", "is red"], "label": 0},
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def write_task(folder, name="books", **settings):
    """Write a task on DOCUMENTS and return the folder of tasks."""
    import yaml

    folder.mkdir(exist_ok=True)
    data = folder / "documents.json"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.5},
        **CHOICE,
        **settings,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def log_likelihood(model, tokenizer, question, answer):
    """Sum of the answer's token log-probabilities, one record at a time."""
    import torch

    asked = tokenizer(question)["input_ids"]
    tokens = torch.tensor([asked + tokenizer(answer)["input_ids"]])
    with torch.no_grad():
        scores = model.eval()(tokens).logits[0].log_softmax(-1)
    return sum(scores[i - 1, tokens[0, i]].item() for i in range(len(asked), tokens.shape[1]))


def hits(model, tokenizer):
    """Whether the most likely choice of each document is the right one."""
    found = []
    for document in DOCUMENTS:
        scores = [
            log_likelihood(model, tokenizer, document["question"], choice)
            for choice in document["choices"]
        ]
        found.append(scores.index(max(scores)) == document["label"])
    return found
