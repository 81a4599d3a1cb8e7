"""The training task: short English instructions to Python expressions; its grammar, files, evaluator and scores."""
