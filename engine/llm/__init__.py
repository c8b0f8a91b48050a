"""Language models that play users, tools and judges: endpoints, batches, questions and their journal."""
