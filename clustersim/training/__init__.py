"""One optimiser step: micro-batches forward and back through a pipeline, gradients, optimiser. Makes no tables of results."""
