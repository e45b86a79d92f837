# Forget some records from a language model of your own, then measure what is left of them.
expunge forget --model my-model --forget forget.jsonl --retain retain.jsonl --out runs/forget
expunge audit --before my-model --after runs/forget/models/after \
  --forget forget.jsonl --retain retain.jsonl --holdout holdout.jsonl --out runs/audit
