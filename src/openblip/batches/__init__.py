"""From rows to batches: mixture, shuffling, transforms, tokenizer, loaders."""
