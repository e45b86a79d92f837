"""The report, the model card and the page of examples, made from the files of a run folder."""
