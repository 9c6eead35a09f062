"""Methods after which each client has a model of its own, one a file; what is post hoc is the verb `personalize`."""
